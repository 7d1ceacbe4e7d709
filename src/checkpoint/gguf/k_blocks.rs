//! The scales of the K types: small whole numbers times a unit that the groups of a block share.
//!
//! The scale of a group is s = d·sc, and its offset is o = −dmin·mn. The file holds d and dmin as f16, and sc and mn in
//! a few bits. A signed sc is raised by half the number of its values.

use super::fields::{self, SmallNumbers};
use super::types::{BlockGrid, ScaleStorage, Zero};

/// The most groups of a block.
const GROUPS: usize = 16;

/// A number per group of a block.
pub(super) type PerGroup = [f32; GROUPS];

/// The same number for all groups: the scale of a block that is one group.
pub(super) fn for_all(number: f32) -> PerGroup {
    [number; GROUPS]
}

/// Stores the small numbers of a block: of `scales` and `offsets`, each `[groups]` or empty, with their units. `None` if
/// a number is not whole or has too many bits.
pub(super) fn put_numbers(
    grid: &BlockGrid,
    small: &SmallNumbers,
    values: [&[f32]; 2],
    units: [Option<f32>; 2],
    block: &mut [u8],
) -> Option<()> {
    let ScaleStorage::Small { bits, groups, .. } = grid.scale else { return None };
    let mut numbers = [0; 2 * GROUPS];
    let mut count = 0;
    // An offset is the negative product.
    for ((values, unit), sign) in values.into_iter().zip(units).zip([1.0, -1.0]) {
        let Some(unit) = unit else { continue };
        for &value in values {
            let number = small_number(sign * value, unit)? + raised(grid);
            numbers[count] = u8::try_from(number).ok().filter(|&number| u32::from(number) < 1 << bits)?;
            count += 1;
        }
    }
    match small {
        SmallNumbers::Planes(planes) => fields::put(planes, &numbers[..count], block),
        SmallNumbers::Pairs(at) => put_pairs(&numbers[..2 * groups], &mut block[*at..*at + 12]),
    }
    Some(())
}

/// The whole number n with n·unit = value. `None` if there is none.
fn small_number(value: f32, unit: f32) -> Option<i32> {
    let (value, unit) = (f64::from(value), f64::from(unit));
    let number = if unit == 0.0 { 0.0 } else { (value / unit).round() };
    // The product of an f16 and a small number is exact.
    (number * unit == value && number.abs() <= 256.0).then_some(number as i32)
}

/// What is added to the small numbers of scales, so that they are unsigned. Types with signed numbers have no offsets.
fn raised(grid: &BlockGrid) -> i32 {
    match grid.scale {
        ScaleStorage::Small { bits, signed: true, .. } => 1 << (bits - 1),
        _ => 0,
    }
}

/// The scales of a block and its offsets, by the units of both.
pub(super) fn take_numbers(grid: &BlockGrid, small: &SmallNumbers, units: [f32; 2], block: &[u8]) -> [PerGroup; 2] {
    let groups = match grid.scale {
        ScaleStorage::Small { groups, .. } => groups,
        _ => 0,
    };
    let count = if grid.zero == Zero::Offset { 2 * groups } else { groups };
    let mut numbers = [0; 2 * GROUPS];
    match small {
        SmallNumbers::Planes(planes) => fields::take(planes, block, &mut numbers[..count]),
        SmallNumbers::Pairs(at) => take_pairs(&block[*at..*at + 12], &mut numbers),
    }
    let (mut scales, mut offsets) = ([0.0; GROUPS], [0.0; GROUPS]);
    for group in 0..groups {
        scales[group] = units[0] * (i32::from(numbers[group]) - raised(grid)) as f32;
        offsets[group] = -(units[1] * f32::from(numbers[groups + group]));
    }
    [scales, offsets]
}

/// Stores eight sc and eight mn of 6 bits in 12 bytes. For j below 4, byte j has sc\[j\] and above it the highest two bits
/// of sc\[j + 4\]; byte j + 4 has the same of mn; byte j + 8 has the lowest four bits of sc\[j + 4\], then those of
/// mn\[j + 4\].
fn put_pairs(numbers: &[u8], bytes: &mut [u8]) {
    let (scales, offsets) = numbers.split_at(8);
    for j in 0..4 {
        bytes[j] = scales[j] | scales[j + 4] >> 4 << 6;
        bytes[j + 4] = offsets[j] | offsets[j + 4] >> 4 << 6;
        bytes[j + 8] = scales[j + 4] & 15 | (offsets[j + 4] & 15) << 4;
    }
}

/// Reads what [`put_pairs`] stored.
fn take_pairs(bytes: &[u8], numbers: &mut [u8]) {
    for j in 0..4 {
        numbers[j] = bytes[j] & 63;
        numbers[j + 4] = bytes[j + 8] & 15 | bytes[j] >> 6 << 4;
        numbers[j + 8] = bytes[j + 4] & 63;
        numbers[j + 12] = bytes[j + 8] >> 4 | bytes[j + 4] >> 6 << 4;
    }
}
