// out = gate·σ(gate)·up, elementwise.

struct Params {
    count: u32,
    // Invocations along x, since elements are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * p.stride + id.x;
    if i < p.count {
        // The bound keeps the exponential finite; beyond it σ is zero to the last bit that matters.
        out[i] = gate[i] / (1.0 + exp(min(-gate[i], 80.0))) * up[i];
    }
}
