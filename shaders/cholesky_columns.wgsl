// Columns of the normalised Cholesky factor, which the column loop of GPTQ reads (src/ops/cholesky.rs):
// slab[j, c] = R[j, i] / R[i, i] with i = start + c and R = J·M·J, where J reverses the order. The slab is 1 on the diagonal
// and 0 below it. M is in packed storage. One invocation per element.
#import tiles

struct Params {
    n: u32,
    start: u32,
    count: u32,
    // Number of elements of the slab, and number of invocations along x.
    elements: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> m: array<f32>;
@group(0) @binding(2) var<storage, read_write> slab: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index >= p.elements {
        return;
    }
    let j = index / p.count;
    let i = p.start + index % p.count;
    if j >= i {
        slab[index] = select(0.0, 1.0, j == i);
        return;
    }
    let row = p.n - 1u - j;
    let column = p.n - 1u - i;
    slab[index] = m[element_offset(row, column)] / m[element_offset(column, column)];
}
