// The portable matrix product in f32 (src/ops/matmul.rs): C = op(A)·op(B), or C += op(A)·op(B).
//   NT: A [m, k], B [n, k]: C = A·Bᵀ    NN: A [m, k], B [k, n]: C = A·B    TN: A [k, m], B [k, n]: C = Aᵀ·B
// All matrices are row-major. `a_start`, `b_start` and `c_start` are the indices of the first elements, so that a range of rows
// needs no copy. One workgroup computes a 64×64 tile of C, and each invocation computes 4×4 elements of it.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    // 1 if the product is added to C, 0 if it replaces C.
    accumulate: u32,
    a_start: u32,
    b_start: u32,
    c_start: u32,
    // Leading dimensions: number of elements from one row to the next.
    a_stride: u32,
    b_stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

const TILE = 64u;
const DEPTH = 16u;

// [depth][quad of rows of C] and [depth][quad of columns of C]. For each depth, the product adds the outer product of a row of
// either tile.
var<workgroup> a_tile: array<vec4<f32>, 256>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

fn load_a(row: u32, depth: u32) -> f32 {
    if row >= p.m || depth >= p.k {
        return 0.0;
    }
#ifdef TN
    return a[p.a_start + depth * p.a_stride + row];
#else
    return a[p.a_start + row * p.a_stride + depth];
#endif
}

fn load_b(column: u32, depth: u32) -> f32 {
    if column >= p.n || depth >= p.k {
        return 0.0;
    }
#ifdef NT
    return b[p.b_start + column * p.b_stride + depth];
#else
    return b[p.b_start + depth * p.b_stride + column];
#endif
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.y * TILE;
    let column0 = group.x * TILE;
    let x = lane % 16u;
    let y = lane / 16u;
    // Each invocation fetches four consecutive rows of A and four consecutive columns of B, at one depth each. If neighbours in
    // memory differ in the depth, neighbouring lanes fetch neighbouring depths. Otherwise they fetch neighbouring rows or columns.
    // So the fetches coalesce.
#ifdef TN
    let a_depth = lane / 16u;
    let a_quad = lane % 16u;
#else
    let a_depth = lane % 16u;
    let a_quad = lane / 16u;
#endif
#ifdef NT
    let b_depth = lane % 16u;
    let b_quad = lane / 16u;
#else
    let b_depth = lane / 16u;
    let b_quad = lane % 16u;
#endif
    var sum: array<vec4<f32>, 4>;
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        let r = row0 + a_quad * 4u;
        let ka = k0 + a_depth;
        a_tile[a_depth * 16u + a_quad] = vec4<f32>(load_a(r, ka), load_a(r + 1u, ka), load_a(r + 2u, ka), load_a(r + 3u, ka));
        let q = column0 + b_quad * 4u;
        let kb = k0 + b_depth;
        b_tile[b_depth * 16u + b_quad] = vec4<f32>(load_b(q, kb), load_b(q + 1u, kb), load_b(q + 2u, kb), load_b(q + 3u, kb));
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d += 1u) {
            let av = a_tile[d * 16u + y];
            let bv = b_tile[d * 16u + x];
            sum[0] += av.x * bv;
            sum[1] += av.y * bv;
            sum[2] += av.z * bv;
            sum[3] += av.w * bv;
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let row = row0 + y * 4u + i;
        for (var j = 0u; j < 4u; j += 1u) {
            let column = column0 + x * 4u + j;
            if row < p.m && column < p.n {
                let index = p.c_start + row * p.n + column;
                c[index] = select(0.0, c[index], p.accumulate == 1u) + sum[i][j];
            }
        }
    }
}
