// The third kernel of the blocked Cholesky factorisation (src/ops/cholesky.rs). It updates the tiles below a tile on the
// diagonal whose factor is L: A ← A·L⁻ᵀ. One workgroup per tile.
#import tiles
#import product

struct Params {
    // The tile column.
    tile: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [tiles on the diagonal, 4096]: L⁻¹ of each tile.
@group(0) @binding(1) var<storage, read> inverse: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<f32>;

const A_ALONG_DEPTH = true;
const B_ALONG_DEPTH = true;

// Index of the first element of the tile.
var<private> base: u32;

fn load_a(row: u32, depth: u32) -> f32 {
    return m[base + row * 64u + depth];
}

fn load_b(column: u32, depth: u32) -> f32 {
    return inverse[p.tile * AREA + column * 64u + depth];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    base = tile_offset(p.tile + 1u + group.x, p.tile);
    var sum: array<vec4<f32>, 16>;
    product(lane, 0u, 64u, &sum);
    // The product ends with a barrier. So all invocations have read the tile before any of them writes to it.
    for (var i = 0u; i < 8u; i += 1u) {
        for (var j = 0u; j < 2u; j += 1u) {
            for (var c = 0u; c < 4u; c += 1u) {
                m[base + tile_row(lane, i) * 64u + tile_column(lane, j) + c] = sum[2u * i + j][c];
            }
        }
    }
}
