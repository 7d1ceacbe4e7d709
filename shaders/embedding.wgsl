// out[t] = table[ids[t] − first_row] for the tokens whose id lies in the slab. One workgroup per token.

struct Params {
    tokens: u32,
    width: u32,
    first_row: u32,
    rows: u32,
    // Workgroups along x, since tokens are spread over two axes.
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
    // An id below the slab wraps round to a row beyond it.
    let row = ids[token] - p.first_row;
    if row < p.rows {
        for (var i = lane; i < p.width; i += 128u) {
            out[token * p.width + i] = table[row * p.width + i];
        }
    }
}
