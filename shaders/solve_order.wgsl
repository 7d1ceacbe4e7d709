// The reordering of columns before and after a triangular solve (src/ops/solve.rs). M, the Cholesky factor, has its columns in
// the reversed processing order. The kernel brings the columns of B [m, n] to this order and pads them with zeros to whole
// tiles: y[r, c] = b[r, order[n−1−c]]. With BACK it brings them back: b[r, order[n−1−c]] = y[r, c]. One invocation per element
// of y.

struct Params {
    n: u32,
    // Number of columns of y.
    width: u32,
    // Number of elements of y, and number of invocations along x.
    count: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read> source: array<f32>;
@group(0) @binding(3) var<storage, read_write> destination: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index >= p.count {
        return;
    }
    let row = index / p.width;
    let column = index % p.width;
#ifdef BACK
    if column < p.n {
        destination[row * p.n + order[p.n - 1u - column]] = source[index];
    }
#else
    if column >= p.n {
        destination[index] = 0.0;
        return;
    }
    destination[index] = source[row * p.n + order[p.n - 1u - column]];
#endif
}
