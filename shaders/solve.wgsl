// One step of Y ← Y·M⁻ᵀ (tiles left to right) or, with BACKWARD, Y ← Y·M⁻¹ (right to left). A 64×64 tile of Y per
// workgroup: takes off the product of the solved columns first..last with M, and, if it is its turn, multiplies by the
// inverse of the tile of M on the diagonal.
#import tiles
#import product

struct Params {
    // Rows of Y, and its columns: a multiple of 64.
    m: u32,
    width: u32,
    // Leftmost tile column of this dispatch.
    tile: u32,
    first: u32,
    last: u32,
    finish: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> lower: array<f32>;
// Of the tiles on the diagonal.
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
        // Not by `tile`: browsers take a private variable for one that may differ between invocations.
        let diagonal = (p.tile + group.x) * 64u;
        product(lane, diagonal, diagonal + 64u, &solved);
        // The barrier at the end of the product stands between the last read of this tile and the first write.
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
