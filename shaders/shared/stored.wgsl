// Rounding of a scale or offset to the type in which it is stored. Imported by fit, grid, refit and snap. The CPU twin is
// `ScaleType::round` in src/ops/grid/spec.rs.

// Returns the f16 nearest to x ≥ 0, as f32; ties go to even. The result lies between the smallest positive f16 (2^-24) and the
// largest finite one (65504). The rounding uses integer arithmetic, because WGSL does not specify in which direction its packing
// built-ins round a value between two f16.
fn to_half(x: f32) -> f32 {
    let bits = bitcast<u32>(clamp(x, 6.103515625e-5, 65504.0));
    let normal = bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
    let subnormal = max(round(x * 16777216.0), 1.0) / 16777216.0;
    return select(normal, subnormal, x < 6.103515625e-5);
}

// Returns the number nearest to x of the type with this number: 0 for f32, 1 for f16, 2 for bf16. Zero stays zero.
fn stored(x: f32, kind: u32) -> f32 {
    if kind == 1u {
        return select(sign(x) * to_half(abs(x)), x, x == 0.0);
    }
    if kind == 2u {
        let bits = bitcast<u32>(x);
        return bitcast<f32>((bits + 0x7fffu + ((bits >> 16u) & 1u)) & 0xffff0000u);
    }
    return x;
}
