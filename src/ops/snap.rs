//! Units for scales and offsets that are stored as small whole numbers, as in the K-quants of llama.cpp. The shader is `snap`.
//!
//! A search gives every group the scale and offset that suit it. Then a unit is chosen for the groups that share one, and their
//! numbers move to the nearest multiples. Later fits keep the units and change the whole numbers.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::{Grid, GridSpec, ScaleType, Steps, Zero};
use crate::{Error, Result};

uniform! {
    struct Params of "snap" {
        groups: u32,
        units: u32,
        per_unit: u32,
        count: u32,
        extreme: f32,
        least: f32,
        most: f32,
        most_offset: f32,
    }
}

/// The range of the whole numbers of units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Multiples {
    /// Number of groups that share a unit.
    pub per_unit: usize,
    /// The number of units of the largest scale. It is negative if numbers have a sign.
    extreme: f32,
    /// The least number of units of a scale.
    pub least: f32,
    /// The greatest number of units of a scale.
    pub most: f32,
    /// The greatest number of units of an offset, in size; 0 if there are no offsets.
    pub most_offset: f32,
}

impl Multiples {
    /// `None` if the scales of `spec` share no units. Errors: `Error::Shape` if offsets share units and scales do not, or the
    /// reverse.
    pub(super) fn of(spec: &GridSpec) -> Result<Option<Self>> {
        let of_offsets = if let Zero::Offset(steps) = spec.zero { Some(steps) } else { None };
        match (spec.scale, of_offsets) {
            (Steps::Own(_), None | Some(Steps::Own(_))) => return Ok(None),
            (Steps::Shared { .. }, None) if spec.zero != Zero::Code => {}
            (Steps::Shared { groups, .. }, Some(Steps::Shared { signed: false, groups: same, .. }))
                if groups == same => {}
            _ => return Err(Error::shape("snap", format!("{spec:?}"))),
        }
        let (Some([least, most]), Some(per_unit)) = (spec.scale.multiples(), spec.shared_groups()) else {
            return Ok(None);
        };
        let extreme = if least < 0.0 { least } else { most };
        let most_offset = of_offsets.and_then(Steps::multiples).map_or(0.0, |[_, most]| most);
        Ok(Some(Self { per_unit, extreme, least, most, most_offset }))
    }

    /// The multiple of `unit` nearest to the scale `x`, but not 0. If numbers have a sign, x keeps its sign.
    pub(super) fn scale(&self, x: f32, unit: f32) -> f32 {
        let exact = x / unit;
        let number = exact.round_ties_even().clamp(self.least, self.most);
        let smallest = if exact < 0.0 && self.least < 0.0 { -1.0 } else { 1.0 };
        unit * if number == 0.0 { smallest } else { number }
    }

    /// The offset nearest to `x`: minus a multiple of `unit`. 0 if the unit is 0.
    pub(super) fn offset(&self, x: f32, unit: f32) -> f32 {
        if unit == 0.0 { 0.0 } else { -unit * (-x / unit).round_ties_even().clamp(0.0, self.most_offset) }
    }
}

/// Chooses the units of `grid`, and brings its scales and offsets to multiples of them. Does nothing if they share no units.
///
/// The units have the type f16. The group with the largest scale, or offset, gets the largest number of them. Errors:
/// `Error::Shape` if scales and offsets do not share units alike.
pub fn snap(rec: &mut Recorder, spec: &GridSpec, grid: &mut Grid) -> Result<()> {
    let Some(multiples) = Multiples::of(spec)? else { return Ok(()) };
    let [m, groups] = grid.scales.matrix("snap")?;
    let per_row = groups.div_ceil(multiples.per_unit);
    let kinds = if multiples.most_offset > 0.0 { 2 } else { 1 };
    let mut units: Tensor = rec.empty(&[kinds * m, per_row])?;
    if rec.is_gpu() {
        let count = m * per_row;
        let params = Params {
            groups: groups as u32,
            units: per_row as u32,
            per_unit: multiples.per_unit as u32,
            count: count as u32,
            extreme: multiples.extreme,
            least: multiples.least,
            most: multiples.most,
            most_offset: multiples.most_offset,
        };
        rec.dispatch(Dispatch {
            kernel: "snap",
            params: bytemuck::bytes_of(&params),
            inputs: &[],
            outputs: &[grid.scales.buffer(), grid.zeros.buffer(), units.buffer()],
            workgroups: [count.div_ceil(64), 1, 1],
            work: 16.0 * (m * groups) as f64,
        })?;
        grid.units = Some(units);
        return Ok(());
    }
    let (scale_units, offset_units) = units.host_mut().split_at_mut(m * per_row);
    let rows = grid.scales.host_mut().par_chunks_mut(groups).zip(scale_units.par_chunks_mut(per_row));
    rows.for_each(|(scales, units)| {
        for (scales, unit) in scales.chunks_mut(multiples.per_unit).zip(units) {
            let largest = scales.iter().fold(0.0f32, |largest, &s| if s.abs() > largest.abs() { s } else { largest });
            *unit = ScaleType::F16.round(largest / multiples.extreme);
            scales.iter_mut().for_each(|s| *s = multiples.scale(*s, *unit));
        }
    });
    let rows = grid.zeros.host_mut().par_chunks_mut(groups).zip(offset_units.par_chunks_mut(per_row));
    rows.for_each(|(offsets, units)| {
        for (offsets, unit) in offsets.chunks_mut(multiples.per_unit).zip(units) {
            let lowest = offsets.iter().fold(0.0f32, |lowest, &o| lowest.min(o));
            *unit = ScaleType::F16.round(-lowest / multiples.most_offset);
            offsets.iter_mut().for_each(|o| *o = multiples.offset(*o, *unit));
        }
    });
    grid.units = Some(units);
    Ok(())
}
