// Selection of columns (src/ops/columns.rs). x consists of runs of `period` elements. The kernel copies the elements
// start..start + width of every run. One invocation per element of the result.

struct Params {
    // Number of elements of the result.
    count: u32,
    // Number of invocations along x. The elements are spread over two axes.
    stride: u32,
    period: u32,
    start: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * p.stride + id.x;
    if i < p.count {
        out[i] = x[i / p.width * p.period + p.start + i % p.width];
    }
}
