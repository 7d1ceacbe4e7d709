// Multiplication of each column of a matrix by a factor, in place (src/ops/scale.rs): w[r, i] *= factors[i], with w [m, n] and
// factors [n]. One invocation per element.

struct Params {
    n: u32,
    // Number of elements, and number of invocations along x.
    count: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> factors: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index < p.count {
        w[index] *= factors[index % p.n];
    }
}
