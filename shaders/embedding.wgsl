// Lookup of token embeddings (src/ops/embedding.rs): out[t] = table[ids[t] − first_row] for each token whose id lies in the
// table. The table may be a slab of the vocabulary: the entries first_row..first_row + rows. One workgroup per token.

struct Params {
    tokens: u32,
    width: u32,
    first_row: u32,
    rows: u32,
    // Number of workgroups along x. The tokens are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = group.y * p.stride + group.x;
    if token >= p.tokens {
        return;
    }
    // For an id below first_row, the difference wraps around to a number above `rows`.
    let row = ids[token] - p.first_row;
    if row < p.rows {
        for (var i = lane; i < p.width; i += 128u) {
            out[token * p.width + i] = table[row * p.width + i];
        }
    }
}
