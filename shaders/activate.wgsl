// The activations of the MLP, for src/ops/activate.rs: out = f(x), element by element. With GATE, the result is multiplied by
// `up`. A further define selects f. One invocation per element.
//
// The bounds on arguments of exponentials keep these finite. Beyond a bound, the result differs too little to matter.

struct Params {
    count: u32,
    // Number of invocations along x. The elements are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
#ifdef GATE
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
#else
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
#endif

#ifdef SILU
fn f(x: f32) -> f32 {
    return x / (1.0 + exp(min(-x, 80.0)));
}
#endif
#ifdef SIGMOID
fn f(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}
#endif
#ifdef GELU
// x·Φ(x). The polynomial is number 26.2.17 of Abramowitz and Stegun, which has an error below 7.5·10⁻⁸ in Φ.
fn f(x: f32) -> f32 {
    let size = min(abs(x), 16.0);
    let t = 1.0 / (1.0 + 0.2316419 * size);
    let series = t * (0.1274148 + t * (-0.14224836 + t * (0.7107069 + t * (-0.726576 + t * 0.5307027))));
    let tail = series * exp(-0.5 * size * size);
    return x * select(1.0 - tail, tail, x < 0.0);
}
#endif
#ifdef GELU_TANH
// x/2·(1 + tanh u) = x / (1 + e^(−2u)) with u = √(2/π)·(x + 0.044715·x³).
fn f(x: f32) -> f32 {
    let z = clamp(x, -16.0, 16.0);
    let minus_2u = -1.595769 * z * (1.0 + 0.044715 * z * z);
    return x / (1.0 + exp(min(minus_2u, 80.0)));
}
#endif
#ifdef RELU
fn f(x: f32) -> f32 {
    return select(x, 0.0, x < 0.0);
}
#endif
#ifdef RELU_SQUARED
fn f(x: f32) -> f32 {
    return select(x * x, 0.0, x < 0.0);
}
#endif

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * p.stride + id.x;
    if i < p.count {
#ifdef GATE
        out[i] = f(x[i]) * up[i];
#else
        out[i] = f(x[i]);
#endif
    }
}
