// The product of a matrix with the diagonal blocks of a square matrix (src/ops/grouped_product.rs): out = A·(B ∘ mask), with
// A [m, n] and B [n, n]. The mask is 1 where the row and the column of B belong to the same group of columns, and 0 elsewhere.
// AWQ uses it to search the clipping range of each group. One workgroup computes one 64×64 tile of the result. The depth runs
// only over the groups that the columns of the tile belong to.
#import product

struct Params {
    m: u32,
    n: u32,
    group_size: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const A_ALONG_DEPTH = true;
const B_ALONG_DEPTH = false;

// First row and column of the tile.
var<private> row0: u32;
var<private> column0: u32;

fn load_a(row: u32, depth: u32) -> f32 {
    if row0 + row >= p.m || depth >= p.n {
        return 0.0;
    }
    return a[(row0 + row) * p.n + depth];
}

fn load_b(column: u32, depth: u32) -> f32 {
    let at = column0 + column;
    if at >= p.n || depth >= p.n || at / p.group_size != depth / p.group_size {
        return 0.0;
    }
    return b[depth * p.n + at];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    row0 = group.y * 64u;
    column0 = group.x * 64u;
    let first = group.x * 64u / p.group_size * p.group_size;
    let last = min((min(group.x * 64u + 63u, p.n - 1u) / p.group_size + 1u) * p.group_size, p.n);
    var sum: array<vec4<f32>, 16>;
    product(lane, first, last, &sum);
    for (var i = 0u; i < 8u; i += 1u) {
        let row = row0 + tile_row(lane, i);
        for (var j = 0u; j < 2u; j += 1u) {
            for (var c = 0u; c < 4u; c += 1u) {
                let column = column0 + tile_column(lane, j) + c;
                if row < p.m && column < p.n {
                    out[row * p.n + column] = sum[2u * i + j][c];
                }
            }
        }
    }
}
