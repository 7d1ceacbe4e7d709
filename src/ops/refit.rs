//! The least-squares fit of the scale of a group, and of its offset if it has one, to its codes. The passes of coordinate descent
//! (`quant::descent`) alternate it with moves of the codes. The shader is `refit`.
//!
//! The loss of a row is e·(H + λI)·eᵀ, where e is the error of the whole row. Let ŵ be the value of the codes in the group and 0
//! outside it, let 1 be 1 in the group and 0 outside it, and let A = H + λI. Adding a·ŵ + b·1 to the row costs least if
//!
//! ```text
//! a·⟨ŵ, A·ŵ⟩ + b·⟨ŵ, A·1⟩ = ⟨ŵ, A·e⟩
//! a·⟨ŵ, A·1⟩ + b·⟨1, A·1⟩ = ⟨1, A·e⟩
//! ```
//!
//! Then the scale is s·(1 + a), and the offset is o·(1 + a) + b. Without offsets, b = 0. With offsets, a = 0 if the two equations are
//! nearly the same, as they are if the group has one code. Matrices `[n, m]` have the columns of the
//! weight, in stored order, along the first axis, and its rows along the second.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::snap::Multiples;
use crate::ops::walk::{LANES, Lanes, load, strips};
use crate::{Error, Result};

/// A group of columns whose scales and offsets are fitted, one of each for every row.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// What the grid is.
    pub spec: &'a GridSpec,
    /// The codes q, `[n, m]`.
    pub codes: &'a Tensor<u32>,
    /// Rows start..start + count of H·E, `[count, m]`, where count is the number of columns of this group.
    pub g: &'a Tensor,
    /// H·Ŵ, `[n, m]`, with Ŵ zero outside the group.
    pub v: &'a Tensor,
    /// H·1, `[n, 1]`, with 1 zero outside the group; only where the grid has offsets.
    pub ones: Option<&'a Tensor>,
    /// The damping λ.
    pub ridge: f32,
    /// First column of the group, a multiple of the group size.
    pub start: usize,
}

/// Fits the scales and offsets of the group, one of each for every row of the weight, and updates the errors of its columns.
///
/// `grid`: scales, and zero points or offsets, `[m, groups]`; `errors`: W* − Ŵ, `[n, m]`. A row of the weight keeps its numbers if
/// no loss depends on them, or if the best scale has another sign. Errors: `Error::Shape` if the shapes do not match.
pub fn refit(rec: &mut Recorder, group: Group<'_>, grid: &mut Grid, errors: &mut Tensor) -> Result<()> {
    let [n, m] = errors.matrix("refit")?;
    let (spec, start) = (group.spec, group.start);
    if !spec.is_possible() || start >= n || !start.is_multiple_of(spec.group_size) {
        return Err(Error::shape("refit", format!("a group of {spec:?} from {start} of {n}")));
    }
    let (groups, count) = (n.div_ceil(spec.group_size), spec.group_size.min(n - start));
    group.g.expect_shape("refit", &[count, m])?;
    group.v.expect_shape("refit", &[n, m])?;
    group.codes.expect_shape("refit", &[n, m])?;
    grid.scales.expect_shape("refit", &[m, groups])?;
    grid.zeros.expect_shape("refit", &[m, groups])?;
    match group.ones {
        Some(ones) if spec.has_offsets() => ones.expect_shape("refit", &[n, 1])?,
        None if !spec.has_offsets() => {}
        _ => return Err(Error::shape("refit", "H·1 without offsets, or offsets without H·1")),
    }
    let multiples = Multiples::of(spec)?;
    let units = multiples.map(|multiples| groups.div_ceil(multiples.per_unit));
    match (&grid.units, units) {
        (Some(given), Some(units)) => {
            given.expect_shape("refit", &[if spec.has_offsets() { 2 * m } else { m }, units])?;
        }
        (None, None) => {}
        (given, _) => return Err(Error::shape("refit", format!("units {given:?} for {spec:?}"))),
    }
    if rec.is_gpu() {
        return refit_gpu(rec, group, grid, errors, multiples);
    }
    let (index, range) = (start / spec.group_size, start * m..(start + count) * m);
    let errors = strips(&mut errors.host_mut()[range], m);
    let (units, unit_columns) = (grid.units.as_ref().map(Tensor::host), units.unwrap_or(1));
    let scales = grid.scales.host_mut().par_chunks_mut(LANES * groups);
    let zeros = grid.zeros.host_mut().par_chunks_mut(LANES * groups);
    errors.into_par_iter().zip(scales.zip(zeros)).enumerate().for_each(|(strip, (errors, (scales, zeros)))| {
        let first = strip * LANES;
        let unit = |row: usize| {
            let (multiples, units) = multiples.zip(units)?;
            let column = index / multiples.per_unit;
            let of_offset = units.get((m + row) * unit_columns + column).copied().unwrap_or(0.0);
            Some((multiples, units[row * unit_columns + column], of_offset))
        };
        let width = scales.len() / groups;
        let fit = Fit {
            group: &group,
            m,
            first,
            scale: scales.iter_mut().skip(index).step_by(groups).collect(),
            second: zeros.iter_mut().skip(index).step_by(groups).collect(),
            units: (first..first + width).map(unit).collect(),
            errors,
        };
        pulp::Arch::new().dispatch(fit);
    });
    Ok(())
}

uniform! {
    struct Params of "refit" {
        m: u32,
        start: u32,
        count: u32,
        group: u32,
        groups: u32,
        scale_type: u32,
        offset_type: u32,
        offsets: u32,
        units: u32,
        per_unit: u32,
        least: f32,
        most: f32,
        most_offset: f32,
        ridge: f32,
    }
}

/// Dispatches [`refit`] on a GPU.
fn refit_gpu(
    rec: &mut Recorder,
    group: Group<'_>,
    grid: &Grid,
    errors: &Tensor,
    multiples: Option<Multiples>,
) -> Result<()> {
    let [m, groups] = grid.scales.matrix("refit")?;
    let (spec, count) = (group.spec, group.g.shape()[0]);
    let params = Params {
        m: m as u32,
        start: group.start as u32,
        count: count as u32,
        group: (group.start / spec.group_size) as u32,
        groups: groups as u32,
        scale_type: spec.scale.own().number(),
        offset_type: spec.offset_type().number(),
        offsets: u32::from(spec.has_offsets()),
        units: grid.units.as_ref().map_or(0, |units| units.shape()[1] as u32),
        per_unit: multiples.map_or(1, |multiples| multiples.per_unit as u32),
        least: multiples.map_or(0.0, |multiples| multiples.least),
        most: multiples.map_or(0.0, |multiples| multiples.most),
        most_offset: multiples.map_or(0.0, |multiples| multiples.most_offset),
        ridge: group.ridge,
    };
    // The kernel reads neither H·1 nor units where there are none. Another array takes their place.
    let ones = group.ones.unwrap_or(group.g).buffer();
    let units = grid.units.as_ref().unwrap_or(group.g).buffer();
    rec.dispatch(Dispatch {
        kernel: "refit",
        params: bytemuck::bytes_of(&params),
        inputs: &[group.g.buffer(), group.v.buffer(), ones, group.codes.buffer(), units],
        outputs: &[grid.scales.buffer(), grid.zeros.buffer(), errors.buffer()],
        workgroups: [m.div_ceil(64), 1, 1],
        work: 16.0 * (m * count) as f64,
    })
}

/// The CPU twin for a strip of rows of the weight.
struct Fit<'a> {
    group: &'a Group<'a>,
    m: usize,
    /// First row of the strip.
    first: usize,
    /// Scale of the group in each row of the strip.
    scale: Vec<&'a mut f32>,
    /// Zero point or offset of the group in each row of the strip.
    second: Vec<&'a mut f32>,
    /// For each row of the strip, the multiples and units of its scale and of its offset, where there are units.
    units: Vec<Option<(Multiples, f32, f32)>>,
    /// Errors of the strip, one slice per column of the group.
    errors: Vec<&'a mut [f32]>,
}

/// The sums of one strip from which scales and offsets follow.
struct Equations {
    /// ⟨ŵ, A·e⟩.
    slope: Lanes,
    /// ⟨1, A·e⟩.
    pull: Lanes,
    /// ⟨ŵ, A·ŵ⟩.
    curvature: Lanes,
    /// ⟨ŵ, A·1⟩.
    mixed: Lanes,
    /// ⟨1, A·1⟩.
    ones: f32,
}

impl pulp::NullaryFnOnce for Fit<'_> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let (group, m, first, width) = (self.group, self.m, self.first, self.scale.len());
        let (mut scale, mut zero, mut offset): (Lanes, Lanes, Lanes) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for lane in 0..width {
            scale[lane] = *self.scale[lane];
            *if group.spec.has_offsets() { &mut offset[lane] } else { &mut zero[lane] } = *self.second[lane];
        }
        let equations = self.equations(&scale, &zero, &offset);
        for (lane, offset) in offset.iter().enumerate().take(width) {
            self.solve(lane, &equations, *offset);
        }
        let (mut new_scale, mut new_offset): (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);
        new_scale.iter_mut().zip(&self.scale).for_each(|(new, scale)| *new = **scale);
        if group.spec.has_offsets() {
            new_offset.iter_mut().zip(&self.second).for_each(|(new, offset)| *new = **offset);
        }
        for (c, errors) in self.errors.iter_mut().enumerate() {
            let place = (group.start + c) * m + first;
            let codes = &group.codes.host()[place..place + width];
            for lane in 0..width {
                let level = codes[lane] as f32 - zero[lane];
                let (old, new) = (scale[lane] * level + offset[lane], new_scale[lane] * level + new_offset[lane]);
                errors[lane] += old - new;
            }
        }
    }
}

impl Fit<'_> {
    /// Sums over the columns of the group.
    #[inline(always)]
    fn equations(&self, scale: &Lanes, zero: &Lanes, offset: &Lanes) -> Equations {
        let (group, m, first, width) = (self.group, self.m, self.first, self.scale.len());
        let none = [0.0; LANES];
        let mut sums = Equations { slope: none, pull: none, curvature: none, mixed: none, ones: 0.0 };
        for (c, errors) in self.errors.iter().enumerate() {
            let place = (group.start + c) * m + first;
            let g = load(group.g.host(), c * m + first, width);
            let v = load(group.v.host(), place, width);
            let codes = &group.codes.host()[place..place + width];
            let one = group.ones.map_or(0.0, |ones| ones.host()[group.start + c] + group.ridge);
            sums.ones += one;
            for lane in 0..width {
                let value = scale[lane] * (codes[lane] as f32 - zero[lane]) + offset[lane];
                let pull = g[lane] + group.ridge * errors[lane];
                sums.slope[lane] += value * pull;
                sums.pull[lane] += pull;
                sums.curvature[lane] += value * (v[lane] + group.ridge * value);
                sums.mixed[lane] += value * one;
            }
        }
        sums
    }

    /// Sets the scale, and the offset if there is one, of row `lane` of the strip. `offset`: o, or 0.
    fn solve(&mut self, lane: usize, equations: &Equations, offset: f32) {
        let spec = self.group.spec;
        let Equations { slope, pull, curvature, mixed, .. } = equations;
        let (slope, pull, curvature, mixed) = (slope[lane], pull[lane], curvature[lane], mixed[lane]);
        let ones = equations.ones;
        let determinant = curvature * ones - mixed * mixed;
        let offsets = spec.has_offsets();
        let growth = match (offsets, determinant > 1e-6 * curvature * ones) {
            (false, _) => slope / curvature,
            (true, true) => (slope * ones - pull * mixed) / determinant,
            (true, false) => 0.0,
        };
        let old = *self.scale[lane];
        let exact = old + old * growth;
        let depends = if offsets { ones > 0.0 } else { curvature > 0.0 };
        if !(depends && exact * old > 0.0) {
            return;
        }
        let units = self.units[lane];
        let scale = match units {
            Some((multiples, unit, _)) => multiples.scale(exact, unit),
            None => spec.scale.own().round(exact),
        };
        *self.scale[lane] = scale;
        if offsets {
            // The offset that suits the scale as it is stored.
            let growth = scale / old - 1.0;
            let exact = offset + offset * growth + (pull - growth * mixed) / ones;
            *self.second[lane] = match units {
                Some((multiples, _, unit)) => multiples.offset(exact, unit),
                None => spec.offset_type().round(exact),
            };
        }
    }
}
