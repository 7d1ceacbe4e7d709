// Rounding of a weight to its grid. Imported by dequantize, descent, fit, gptq, grid, refit and rtn.
//
// A code q of a group stands for ŵ = s·(q − z) + o. Grids with zero points have o = 0. Grids with offsets have z = 0. The second
// number of a group in memory is z or o.

struct Cell {
    scale: f32,
    zero: f32,
    offset: f32,
}

// Returns the grid of a group. `second`: z, or o if `offsets` is 1.
fn cell(scale: f32, second: f32, offsets: u32) -> Cell {
    let zero = select(second, 0.0, offsets == 1u);
    return Cell(scale, zero, second - zero);
}

// Returns the code nearest to ŵ = s·x + o, as a float: x rounded to an even number at ties, and clamped so that the code lies in
// [0, top]. `top`: 2^b − 1.
fn code_at(x: f32, grid: Cell, top: f32) -> f32 {
    return round(clamp(x, -grid.zero, top - grid.zero)) + grid.zero;
}

// Returns the code nearest to the weight w. `inverse_scale`: 1/s.
fn code_of(w: f32, inverse_scale: f32, grid: Cell, top: f32) -> f32 {
    return code_at((w - grid.offset) * inverse_scale, grid, top);
}

// Returns ŵ of a code.
fn value_of(code: f32, grid: Cell) -> f32 {
    return grid.scale * (code - grid.zero) + grid.offset;
}
