// Scales and offsets that are whole numbers of a unit. Imported by refit and snap. The CPU twin is in src/ops/snap.rs.

// Returns the multiple of `unit` nearest to x, with a number of units between `least` and `most` that is not 0. If numbers have a
// sign, x keeps its sign.
fn whole(x: f32, unit: f32, least: f32, most: f32) -> f32 {
    let exact = x / unit;
    let number = clamp(round(exact), least, most);
    let smallest = select(1.0, -1.0, exact < 0.0 && least < 0.0);
    return unit * select(number, smallest, number == 0.0);
}

// Returns the offset −unit·number nearest to x, with a number between 0 and `most`. 0 if the unit is 0.
fn whole_offset(x: f32, unit: f32, most: f32) -> f32 {
    return select(-unit * clamp(round(-x / unit), 0.0, most), 0.0, unit == 0.0);
}
