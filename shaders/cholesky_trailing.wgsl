// The fourth kernel of the blocked Cholesky factorisation (src/ops/cholesky.rs). After tile column k is finished, it updates the
// tiles to the right of it: A[I, J] −= L[I, k]·L[J, k]ᵀ for k < J ≤ I. One workgroup per tile.
#import tiles
#import product

struct Params {
    // k, the number of tiles to update, and the number of workgroups along x.
    tile: u32,
    tiles: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> m: array<f32>;

const A_ALONG_DEPTH = true;
const B_ALONG_DEPTH = true;

// Index of the first element of L[I, k], and of L[J, k].
var<private> a_base: u32;
var<private> b_base: u32;

fn load_a(row: u32, depth: u32) -> f32 {
    return m[a_base + row * 64u + depth];
}

fn load_b(column: u32, depth: u32) -> f32 {
    return m[b_base + column * 64u + depth];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * p.stride + group.x;
    if index >= p.tiles {
        return;
    }
    let position = tile_position(index) + p.tile + 1u;
    a_base = tile_offset(position.x, p.tile);
    b_base = tile_offset(position.y, p.tile);
    var sum: array<vec4<f32>, 16>;
    product(lane, 0u, 64u, &sum);
    let base = tile_offset(position.x, position.y);
    for (var i = 0u; i < 8u; i += 1u) {
        for (var j = 0u; j < 2u; j += 1u) {
            for (var c = 0u; c < 4u; c += 1u) {
                m[base + tile_row(lane, i) * 64u + tile_column(lane, j) + c] -= sum[2u * i + j][c];
            }
        }
    }
}
