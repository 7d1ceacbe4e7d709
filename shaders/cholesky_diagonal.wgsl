// The Cholesky factor L of one tile on the diagonal, and its inverse, in one sweep by one workgroup.
//
// The upper triangle of `a` holds the matrix, the part below the diagonal the inverse of L up to a scale per row. Step k
// takes multiples of row k from the rows below: it eliminates column k of the matrix, and the same row operations on the
// identity build the inverse where the eliminated column was. Only row k is read, only rows below it are written.
#import tiles

struct Params {
    // Row and column of the tile.
    tile: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> m: array<f32>;
// Per tile on the diagonal: the inverse of its factor.
@group(0) @binding(2) var<storage, read_write> inverse: array<f32>;
// Becomes 1 if a pivot is not positive and finite.
@group(0) @binding(3) var<storage, read_write> failed: array<u32>;

var<workgroup> a: array<f32, 4096>;

fn usable(pivot: f32) -> bool {
    let bits = bitcast<u32>(pivot);
    return bits > 0u && bits < 0x7f800000u;
}

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
