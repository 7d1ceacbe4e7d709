// The nearest f16, between the smallest positive one and the largest finite one, by integer arithmetic: what the
// packing built-ins do with a value between two halves is not specified.
fn to_half(x: f32) -> f32 {
    let bits = bitcast<u32>(clamp(x, 6.103515625e-5, 65504.0));
    let normal = bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
    let subnormal = max(round(x * 16777216.0), 1.0) / 16777216.0;
    return select(normal, subnormal, x < 6.103515625e-5);
}
