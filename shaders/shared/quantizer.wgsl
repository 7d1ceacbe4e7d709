// The level q − z of the grid nearest to a weight: round_half_even(w / s) with q kept in [0, top].
fn level(w: f32, inverse_scale: f32, zero: f32, top: f32) -> f32 {
    return round(clamp(w * inverse_scale, -zero, top - zero));
}
