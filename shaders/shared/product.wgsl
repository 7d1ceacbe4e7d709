// A 64×64 tile of A·B by a workgroup of 64 invocations, each of which has 8×8 of it. The file that imports this defines
//   fn load_a(row: u32, depth: u32) -> f32 and fn load_b(column: u32, depth: u32) -> f32, row and column within the tile,
//   zero out of range, and
//   A_ALONG_DEPTH, B_ALONG_DEPTH: whether neighbours in memory differ in the depth, so that fetches coalesce.

const DEPTH = 16u;

// [depth][quad of rows] and [depth][quad of columns].
var<workgroup> a_tile: array<vec4<f32>, 256>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

// Where a quad lies: swizzled, so that lanes that run along the depth write to different banks.
fn slot(depth: u32, quad: u32) -> u32 {
    return depth * 16u + (quad ^ depth);
}

// Depth and quad of the i-th fetch.
fn fetch(i: u32, along_depth: bool) -> vec2<u32> {
    return select(vec2<u32>(i / 16u, i % 16u), vec2<u32>(i % 16u, i / 16u), along_depth);
}

// Row i (of 8) of an invocation within the tile.
fn tile_row(lane: u32, i: u32) -> u32 {
    return (i / 4u) * 32u + lane / 8u * 4u + i % 4u;
}

// First column of quad j (of 2) of an invocation within the tile.
fn tile_column(lane: u32, j: u32) -> u32 {
    return j * 32u + lane % 8u * 4u;
}

// Adds the product over depths first..last: sum[2i + j] belongs to row i and quad j. Ends with a barrier. `last` − `first`
// is a multiple of 16, or the loads give zeros beyond `last`.
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
