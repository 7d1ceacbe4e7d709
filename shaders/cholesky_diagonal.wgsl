// The second kernel of the blocked Cholesky factorisation (src/ops/cholesky.rs). One workgroup computes the Cholesky factor L of
// one tile on the diagonal and the inverse of L, in one pass.
//
// The upper triangle of `a` holds the matrix. The part below the diagonal becomes the inverse of L, except for one factor per
// row. Step k subtracts multiples of row k from the rows below it. This eliminates column k of the matrix. The same row
// operations, applied to the identity, build the inverse in the place of the eliminated column. Step k reads only row k and
// writes only the rows below it.
#import tiles

struct Params {
    // Tile row, and tile column, of the tile.
    tile: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> m: array<f32>;
// [tiles on the diagonal, 4096]: the inverse of the factor of each tile.
@group(0) @binding(2) var<storage, read_write> inverse: array<f32>;
// Set to 1 if a pivot is not positive and finite. The host then reports that there is no factor.
@group(0) @binding(3) var<storage, read_write> failed: array<u32>;

var<workgroup> a: array<f32, 4096>;

// Whether a pivot is positive and finite. The test uses the bits, because a shader may assume that there are no NaNs and
// infinities.
fn usable(pivot: f32) -> bool {
    let bits = bitcast<u32>(pivot);
    return bits > 0u && bits < 0x7f800000u;
}

// Returns pivot k, or 1 if it is not usable, so that the arithmetic stays finite.
fn pivot(k: u32) -> f32 {
    let value = a[k * 65u];
    return select(1.0, value, usable(value));
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    let base = tile_offset(p.tile, p.tile);
    for (var i = lane; i < AREA; i += 256u) {
        let row = i / 64u;
        let column = i % 64u;
        a[i] = select(0.0, m[base + column * 64u + row], column >= row);
    }
    workgroupBarrier();
    let j = lane % 64u;
    for (var k = 0u; k < 64u; k += 1u) {
        let scale = 1.0 / pivot(k);
        for (var i = k + 1u + lane / 64u; i < 64u; i += 4u) {
            let factor = a[k * 64u + i] * scale;
            if j < k || j >= i {
                a[i * 64u + j] -= factor * a[k * 64u + j];
            } else if j == k {
                a[i * 64u + j] = -factor;
            }
        }
        workgroupBarrier();
    }
    if lane < 64u && !usable(a[lane * 65u]) {
        failed[0] = 1u;
    }
    for (var i = lane; i < AREA; i += 256u) {
        let row = i / 64u;
        let column = i % 64u;
        let root = sqrt(pivot(column));
        let row_scale = 1.0 / sqrt(pivot(row));
        m[base + i] = select(select(0.0, a[column * 64u + row] / root, column < row), root, column == row);
        inverse[p.tile * AREA + i] = select(select(0.0, a[i] * row_scale, column < row), row_scale, column == row);
    }
}
