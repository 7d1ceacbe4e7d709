// The hyperbolic tangent. The one of WGSL overflows for large arguments on some drivers, and loses digits near zero on others.
// `tanh` in src/ops/math.rs is the twin.

// Returns tanh x. The result is ±1 for large |x|.
fn bounded_tanh(x: f32) -> f32 {
    let size = min(abs(x), 20.0);
    let square = size * size;
    // x³·near is tanh x − x for |x| ≤ 0.625, with an error below 2·10⁻⁸·|x|.
    let near = -0.33333328 + square * (0.13332719 + square * (-0.053843263 + square * (0.02096133 - square * 0.006045165)));
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * size));
    return sign(x) * select(far, size + size * square * near, size <= 0.625);
}
