// out[t, i] = x[t, i] / sqrt(mean_i x[t, i]² + ε) · weight[i]. One workgroup per token.

struct Params {
    tokens: u32,
    width: u32,
    epsilon: f32,
    // Workgroups along x, since tokens are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const LANES = 128u;
var<workgroup> partial: array<f32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = group.y * p.stride + group.x;
    let start = min(token, p.tokens - 1u) * p.width;
    var squares = 0.0;
    for (var i = lane; i < p.width; i += LANES) {
        let value = x[start + i];
        squares += value * value;
    }
    partial[lane] = squares;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[lane] += partial[lane + half];
        }
        workgroupBarrier();
    }
    let scale = inverseSqrt(partial[0] / f32(p.width) + p.epsilon);
    if token < p.tokens {
        for (var i = lane; i < p.width; i += LANES) {
            out[start + i] = x[start + i] * scale * weight[i];
        }
    }
}
