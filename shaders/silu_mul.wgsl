// The gated activation of the MLP (src/ops/silu_mul.rs): out = gate·σ(gate)·up, element by element. One invocation per element.

struct Params {
    count: u32,
    // Number of invocations along x. The elements are spread over two axes.
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
        // The bound keeps the exponential finite. For arguments below −80, σ is so small that the bound changes nothing that matters.
        out[i] = gate[i] / (1.0 + exp(min(-gate[i], 80.0))) * up[i];
    }
}
