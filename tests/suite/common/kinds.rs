//! The kinds of grid on which formats store layers.

use aquatint::device::{Recorder, Tensor};
use aquatint::ops::grid::{Grid, GridSpec, ScaleType, Steps, Symmetry, Zero, shrunk};

/// A grid with scales of either sign and the fixed zero point `zero`, as in Q4_0 (4 bits, 8) and Q2_0 (2 bits, 1) of llama.cpp.
pub fn signed(bits: u32, zero: u32, group_size: usize, scale: ScaleType) -> GridSpec {
    GridSpec { bits, group_size, zero: Zero::Fixed(zero), scale: Steps::Own(scale), signed: true }
}

/// Whole numbers of `bits` bits without a sign, for scales and offsets of `groups` groups each, as in Q2_K, Q4_K and Q5_K.
pub fn shared_offsets(bits: u32, group_size: usize, whole_bits: u32, groups: usize) -> GridSpec {
    let steps = Steps::Shared { bits: whole_bits, signed: false, groups };
    GridSpec { bits, group_size, zero: Zero::Offset(steps), scale: steps, signed: false }
}

/// Whole numbers of `bits` bits with a sign, for the scales of 16 groups each, as in Q3_K and Q6_K.
pub fn shared_signed(bits: u32, group_size: usize, whole_bits: u32) -> GridSpec {
    let scale = Steps::Shared { bits: whole_bits, signed: true, groups: 16 };
    GridSpec { bits, group_size, zero: Zero::Fixed(1 << (bits - 1)), scale, signed: true }
}

/// One grid of each way to stand for zero, with nothing rounded: zero points, offsets, and a fixed zero point with scales of either
/// sign.
pub fn unrounded(bits: u32, group_size: usize) -> [GridSpec; 3] {
    [
        GridSpec::new(bits, group_size, Symmetry::Asymmetric, ScaleType::F32),
        GridSpec::with_offsets(bits, group_size, ScaleType::F32),
        signed(bits, 1 << (bits - 1), group_size, ScaleType::F32),
    ]
}

/// A grid of `w` of a kind of [`unrounded`], on which no weight lies halfway between two levels. The ends of a range around zero
/// do, so that it is shrunk.
pub fn grid_without_ties(rec: &mut Recorder, w: &Tensor, spec: &GridSpec) -> Grid {
    shrunk(rec, w, spec, if spec.signed { 90 } else { 100 }).unwrap()
}

/// The grids whose groups have numbers of their own.
pub fn own(group_size: usize) -> Vec<(&'static str, GridSpec)> {
    let zeros = |bits, symmetry, kind| GridSpec::new(bits, group_size, symmetry, kind);
    let offsets = |bits, kind| GridSpec::with_offsets(bits, group_size, kind);
    vec![
        ("zero points", zeros(4, Symmetry::Asymmetric, ScaleType::F32)),
        ("zero points with f16", zeros(2, Symmetry::Asymmetric, ScaleType::F16)),
        ("zero points with bf16", zeros(3, Symmetry::Asymmetric, ScaleType::Bf16)),
        ("symmetric", zeros(3, Symmetry::Symmetric, ScaleType::F16)),
        ("offsets", offsets(2, ScaleType::F32)),
        ("offsets with f16", offsets(4, ScaleType::F16)),
        ("offsets with bf16", offsets(3, ScaleType::Bf16)),
        ("signed", signed(3, 4, group_size, ScaleType::F32)),
        ("Q4_0", signed(4, 8, group_size, ScaleType::F16)),
        ("Q2_0", signed(2, 1, group_size, ScaleType::F16)),
    ]
}

/// The grids whose groups share units.
pub fn shared(group_size: usize) -> Vec<(&'static str, GridSpec)> {
    vec![
        ("Q2_K", shared_offsets(2, group_size, 4, 16)),
        ("Q3_K", shared_signed(3, group_size, 6)),
        ("Q4_K", shared_offsets(4, group_size, 6, 8)),
        ("Q6_K", shared_signed(6, group_size, 8)),
    ]
}
