// Root-mean-square normalisation (src/ops/rms_norm.rs): out[t, i] = x[t, i] / sqrt(mean_i x[t, i]² + ε) · weight[i].
// x and out are [tokens, width]. One workgroup per token.
#import group

struct Params {
    tokens: u32,
    width: u32,
    epsilon: f32,
    // Number of workgroups along x. The tokens are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const LANES = 128u;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, at: Invocation) {
    let lane = at.lane;
    let token = group.y * p.stride + group.x;
    let start = min(token, p.tokens - 1u) * p.width;
    var squares = 0.0;
    for (var i = lane; i < p.width; i += LANES) {
        let value = x[start + i];
        squares += value * value;
    }
    let scale = inverseSqrt(group_sum(at, squares) / f32(p.width) + p.epsilon);
    if token < p.tokens {
        for (var i = lane; i < p.width; i += LANES) {
            out[start + i] = x[start + i] * scale * weight[i];
        }
    }
}
