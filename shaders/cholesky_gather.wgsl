// The first kernel of the blocked Cholesky factorisation (src/ops/cholesky.rs). It fills M with the matrix to be factored: the
// lower triangle of the damped hessian H + λI in the reversed processing order, and zeros above the diagonal. H and M are in
// packed storage. A zero on the diagonal of H becomes 1 before λ is added. Beyond row or column n the matrix is the identity, so
// that tiles at the edge are factored like the others. One invocation per element of M.
#import tiles

struct Params {
    n: u32,
    // Number of elements of M, and number of invocations along x.
    count: u32,
    stride: u32,
    // λ.
    ridge: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> h: array<f32>;
// [n]: the original column of each processed column.
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index >= p.count {
        return;
    }
    let tile = tile_position(index / AREA);
    let row = tile.x * 64u + index % AREA / 64u;
    let column = tile.y * 64u + index % 64u;
    if row >= p.n || column > row {
        m[index] = select(0.0, 1.0, row == column);
        return;
    }
    let i = order[p.n - 1u - row];
    let j = order[p.n - 1u - column];
    var value = h[element_offset(max(i, j), min(i, j))];
    if row == column {
        value = select(value, 1.0, value == 0.0) + p.ridge;
    }
    m[index] = value;
}
