// Rounding of a weight to its grid. Imported by descent, gptq and grid.

// Returns the level q − z of the code q nearest to the weight w: round_half_even(w / s), clamped so that q lies in [0, top].
// `inverse_scale`: 1/s; `zero`: z; `top`: 2^b − 1.
fn level(w: f32, inverse_scale: f32, zero: f32, top: f32) -> f32 {
    return round(clamp(w * inverse_scale, -zero, top - zero));
}
