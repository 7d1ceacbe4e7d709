// Rounding of a scale to f16. Imported by grid and refit. The CPU twin is `to_half` in src/ops/grid.rs.

// Returns the f16 nearest to x ≥ 0, as f32; ties go to even. The result lies between the smallest positive f16 (2^-24) and the
// largest finite one (65504). The rounding uses integer arithmetic, because WGSL does not specify in which direction its packing
// built-ins round a value between two f16.
fn to_half(x: f32) -> f32 {
    let bits = bitcast<u32>(clamp(x, 6.103515625e-5, 65504.0));
    let normal = bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
    let subnormal = max(round(x * 16777216.0), 1.0) / 16777216.0;
    return select(normal, subnormal, x < 6.103515625e-5);
}
