// One step of a triangular solve with the Cholesky factor M of the damped hessian (src/ops/solve.rs): Y ← Y·M⁻ᵀ, with the tiles
// from left to right, or with BACKWARD Y ← Y·M⁻¹, with the tiles from right to left. The correction uses both.
//
// One workgroup updates a 64×64 tile of Y. It subtracts the product of the solved columns first..last of Y with M. If `finish`
// is 1, it also multiplies the tile by the inverse of the tile of M on the diagonal, after which the tile is solved.
#import tiles
#import product

struct Params {
    // Number of rows of Y, and number of its columns, a multiple of 64.
    m: u32,
    width: u32,
    // The leftmost tile column of this dispatch.
    tile: u32,
    // The solved columns of Y that the step subtracts.
    first: u32,
    last: u32,
    // 1 if the step solves its tiles.
    finish: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// M, in packed storage.
@group(0) @binding(1) var<storage, read> lower: array<f32>;
// [tiles on the diagonal, 4096]: the inverse of each tile of M on the diagonal.
@group(0) @binding(2) var<storage, read> inverse: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const A_ALONG_DEPTH = true;
#ifdef BACKWARD
const B_ALONG_DEPTH = false;
#else
const B_ALONG_DEPTH = true;
#endif

var<private> row0: u32;
var<private> tile: u32;
// Whether load_b reads `inverse` instead of `lower`.
var<private> finishing: bool;

fn load_a(row: u32, depth: u32) -> f32 {
    if row0 + row >= p.m {
        return 0.0;
    }
    return y[(row0 + row) * p.width + depth];
}

fn load_b(column: u32, depth: u32) -> f32 {
#ifdef BACKWARD
    let element = depth % 64u * 64u + column;
    if finishing {
        return inverse[tile * AREA + element];
    }
    return lower[tile_offset(depth / 64u, tile) + element];
#else
    let element = column * 64u + depth % 64u;
    if finishing {
        return inverse[tile * AREA + element];
    }
    return lower[tile_offset(tile, depth / 64u) + element];
#endif
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    tile = p.tile + group.x;
    row0 = group.y * 64u;
    finishing = false;
    var sum: array<vec4<f32>, 16>;
    product(lane, p.first, p.last, &sum);
    for (var i = 0u; i < 8u; i += 1u) {
        let row = row0 + tile_row(lane, i);
        for (var j = 0u; j < 8u; j += 1u) {
            let column = tile * 64u + tile_column(lane, j / 4u) + j % 4u;
            if row < p.m {
                y[row * p.width + column] -= sum[2u * i + j / 4u][j % 4u];
            }
        }
    }
    if p.finish == 1u {
        storageBarrier();
        finishing = true;
        var solved: array<vec4<f32>, 16>;
        // This does not use `tile`. Browsers treat a private variable as a value that may differ between invocations, and the
        // barriers in `product` need uniform control flow.
        let diagonal = (p.tile + group.x) * 64u;
        product(lane, diagonal, diagonal + 64u, &solved);
        // The product ends with a barrier. So all invocations have read the tile before any of them writes to it.
        for (var i = 0u; i < 8u; i += 1u) {
            let row = row0 + tile_row(lane, i);
            for (var j = 0u; j < 8u; j += 1u) {
                let column = tile * 64u + tile_column(lane, j / 4u) + j % 4u;
                if row < p.m {
                    y[row * p.width + column] = solved[2u * i + j / 4u][j % 4u];
                }
            }
        }
    }
}
