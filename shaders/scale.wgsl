// Multiplication in place, for src/ops/scale.rs: w *= factor, element by element. With COLUMNS, column i of a matrix is multiplied
// by factors[i]. One invocation per element.

struct Params {
    // Number of elements, and number of invocations along x. The elements are spread over two axes.
    count: u32,
    stride: u32,
    // Number of columns. Only COLUMNS uses it.
    n: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
#ifdef COLUMNS
@group(0) @binding(1) var<storage, read> factors: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<f32>;
#else
@group(0) @binding(1) var<storage, read_write> w: array<f32>;
#endif

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index < p.count {
#ifdef COLUMNS
        w[index] *= factors[index % p.n];
#else
        w[index] *= p.factor;
#endif
    }
}
