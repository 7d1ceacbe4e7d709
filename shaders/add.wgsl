// Sums in place, for src/ops/add.rs: a += factor·b, element by element. With BIAS, the row b is added to every row of a.

struct Params {
    count: u32,
    // Number of invocations along x. The elements are spread over two axes.
    stride: u32,
    // Number of elements of a row. Only BIAS uses it.
    width: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> a: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * p.stride + id.x;
    if i < p.count {
#ifdef BIAS
        a[i] += b[i % p.width];
#else
        a[i] += p.factor * b[i];
#endif
    }
}
