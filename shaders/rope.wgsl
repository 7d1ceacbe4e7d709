// Rotary position embedding, in place (src/ops/rope.rs). The kernel rotates the first 2·pairs_per_head columns of every head by
// the angles of the token's position. The columns of pair i are i·step and i·step + distance. x is [tokens, heads·head_dim]. One
// invocation per pair.

struct Params {
    // Number of pairs of all tokens.
    pairs: u32,
    pairs_per_token: u32,
    pairs_per_head: u32,
    head_dim: u32,
    step: u32,
    distance: u32,
    seq_len: u32,
    // Position of the first token of a sequence.
    first: u32,
    // Number of invocations along x. The pairs are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [positions, 2·pairs_per_head]: a row holds the cosines of a position, then its sines.
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let pair = id.y * p.stride + id.x;
    if pair >= p.pairs {
        return;
    }
    let position = p.first + pair / p.pairs_per_token % p.seq_len;
    let i = pair % p.pairs_per_head;
    let first = pair / p.pairs_per_head * p.head_dim + i * p.step;
    let second = first + p.distance;
    let cosine = table[position * 2u * p.pairs_per_head + i];
    let sine = table[position * 2u * p.pairs_per_head + p.pairs_per_head + i];
    let a = x[first];
    let b = x[second];
    x[first] = a * cosine - b * sine;
    x[second] = b * cosine + a * sine;
}
