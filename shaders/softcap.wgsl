// A soft bound, in place (src/ops/softcap.rs): x = cap·tanh(x / cap), element by element. One invocation per element.
#import tanh

struct Params {
    count: u32,
    // Number of invocations along x. The elements are spread over two axes.
    stride: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * p.stride + id.x;
    if i < p.count {
        x[i] = p.cap * bounded_tanh(x[i] / p.cap);
    }
}
