// A matrix product for the kernels gram, grouped_product, solve, cholesky_panel and cholesky_trailing. One workgroup of 64
// invocations computes a 64×64 tile of A·B. Each invocation computes 8×8 elements of it.
//
// The importing file defines:
//   fn load_a(row: u32, depth: u32) -> f32      an element of A. `row` counts from the first row of the tile.
//   fn load_b(column: u32, depth: u32) -> f32   an element of B. `column` counts from the first column of the tile.
//   A_ALONG_DEPTH, B_ALONG_DEPTH                whether neighbours in memory differ in the depth. The fetches then run along
//                                               the depth, so that they coalesce.
// Both functions return 0 for rows, columns and depths outside the matrix.

const DEPTH = 16u;

// [depth][quad of rows of A] and [depth][quad of columns of B]. A quad is four consecutive rows or columns.
var<workgroup> a_tile: array<vec4<f32>, 256>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

// Returns the index of a quad in `a_tile` or `b_tile`. The quads of a depth are permuted, so that lanes that run along the depth
// write to different memory banks.
fn slot(depth: u32, quad: u32) -> u32 {
    return depth * 16u + (quad ^ depth);
}

// Returns the depth and the quad of fetch number i.
fn fetch(i: u32, along_depth: bool) -> vec2<u32> {
    return select(vec2<u32>(i / 16u, i % 16u), vec2<u32>(i % 16u, i / 16u), along_depth);
}

// Returns row i (of 8) of an invocation, counted within the tile.
fn tile_row(lane: u32, i: u32) -> u32 {
    return (i / 4u) * 32u + lane / 8u * 4u + i % 4u;
}

// Returns the first column of quad j (of 2) of an invocation, counted within the tile.
fn tile_column(lane: u32, j: u32) -> u32 {
    return j * 32u + lane % 8u * 4u;
}

// Adds the product over the depths first..last to `sum`. sum[2i + j] holds the four elements of row i and column quad j of this
// invocation. The function ends with a barrier. If `last` − `first` is not a multiple of 16, load_a and load_b must return 0
// from depth `last` on.
fn product(lane: u32, first: u32, last: u32, sum: ptr<function, array<vec4<f32>, 16>>) {
    let x = lane % 8u;
    let y = lane / 8u;
    for (var d0 = first; d0 < last; d0 += DEPTH) {
        for (var i = lane; i < 256u; i += 64u) {
            let a = fetch(i, A_ALONG_DEPTH);
            let row = a.y * 4u;
            let da = d0 + a.x;
            a_tile[slot(a.x, a.y)] = vec4<f32>(load_a(row, da), load_a(row + 1u, da), load_a(row + 2u, da), load_a(row + 3u, da));
            let b = fetch(i, B_ALONG_DEPTH);
            let column = b.y * 4u;
            let db = d0 + b.x;
            b_tile[slot(b.x, b.y)] = vec4<f32>(load_b(column, db), load_b(column + 1u, db), load_b(column + 2u, db), load_b(column + 3u, db));
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d += 1u) {
            let a0 = a_tile[slot(d, y)];
            let a1 = a_tile[slot(d, y + 8u)];
            let b0 = b_tile[slot(d, x)];
            let b1 = b_tile[slot(d, x + 8u)];
            (*sum)[0] += a0.x * b0;
            (*sum)[1] += a0.x * b1;
            (*sum)[2] += a0.y * b0;
            (*sum)[3] += a0.y * b1;
            (*sum)[4] += a0.z * b0;
            (*sum)[5] += a0.z * b1;
            (*sum)[6] += a0.w * b0;
            (*sum)[7] += a0.w * b1;
            (*sum)[8] += a1.x * b0;
            (*sum)[9] += a1.x * b1;
            (*sum)[10] += a1.y * b0;
            (*sum)[11] += a1.y * b1;
            (*sum)[12] += a1.z * b0;
            (*sum)[13] += a1.z * b1;
            (*sum)[14] += a1.w * b0;
            (*sum)[15] += a1.w * b1;
        }
        workgroupBarrier();
    }
}
