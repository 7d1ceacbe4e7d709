//! The least-squares fit of the scale of a group to its codes. The passes of coordinate descent (`quant::descent`) alternate it
//! with moves of the codes. The shader is `refit`.
//!
//! The loss of a row is e·(H + λI)·eᵀ, where e is the error of the whole row. Let ŵ be s·(q − z) in the group and 0 outside it.
//! Over the scale of the group alone, the loss is least at `s + s·⟨ŵ, e·(H + λI)⟩ / ⟨ŵ, ŵ·(H + λI)⟩`. Matrices `[n, m]` have
//! the columns of the weight, in stored order, along the first axis, and its rows along the second.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::{Grid, ScaleType, to_half};
use crate::ops::walk::{LANES, Lanes, load, strips};
use crate::{Error, Result};

/// A group of columns whose scales are fitted, one scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// The corrected weight W*, `[n, m]`.
    pub w: &'a Tensor,
    /// The codes q, `[n, m]`.
    pub codes: &'a Tensor<u32>,
    /// Rows start..start + count of H·E, `[count, m]`, where count is the number of columns of this group.
    pub g: &'a Tensor,
    /// H·Ŵ, `[n, m]`, with Ŵ zero outside the group.
    pub v: &'a Tensor,
    /// The damping λ.
    pub ridge: f32,
    /// First column of the group, a multiple of `size`.
    pub start: usize,
    /// Group size: the number of columns per group, of which the last group may have fewer.
    pub size: usize,
    /// The type that the scale is rounded to.
    pub scale_type: ScaleType,
}

/// Fits the scales of the group, one for each row of the weight, and updates the errors of its columns.
///
/// `grid`: scales and zero points, `[m, groups]`; `errors`: W* − Ŵ, `[n, m]`. A row of the weight keeps its scale if all its
/// levels q − z in the group are 0, or if the best scale is not positive. Errors: `Error::Shape` if the shapes do not match.
pub fn refit(rec: &mut Recorder, group: Group<'_>, grid: &mut Grid, errors: &mut Tensor) -> Result<()> {
    let [n, m] = errors.matrix("refit")?;
    if group.size == 0 || group.start >= n || !group.start.is_multiple_of(group.size) {
        return Err(Error::shape("refit", format!("a group of {} from {} of {n}", group.size, group.start)));
    }
    let (groups, count) = (n.div_ceil(group.size), group.size.min(n - group.start));
    for (tensor, rows) in [(group.w, n), (group.g, count), (group.v, n)] {
        tensor.expect_shape("refit", &[rows, m])?;
    }
    group.codes.expect_shape("refit", &[n, m])?;
    grid.scales.expect_shape("refit", &[m, groups])?;
    grid.zeros.expect_shape("refit", &[m, groups])?;
    if rec.is_gpu() {
        return refit_gpu(rec, group, grid, errors);
    }
    let (zeros, index) = (grid.zeros.host(), group.start / group.size);
    let range = group.start * m..(group.start + count) * m;
    let errors = strips(&mut errors.host_mut()[range], m);
    let scales = grid.scales.host_mut().par_chunks_mut(LANES * groups);
    errors.into_par_iter().zip(scales).enumerate().for_each(|(strip, (errors, scales))| {
        let first = strip * LANES;
        let scale = scales.iter_mut().skip(index).step_by(groups).collect();
        let zero = zeros[first * groups..].iter().skip(index).step_by(groups).copied().collect();
        pulp::Arch::new().dispatch(Fit { group: &group, m, first, scale, zero, errors });
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
        half: u32,
        ridge: f32,
    }
}

/// Dispatches [`refit`] on a GPU.
fn refit_gpu(rec: &mut Recorder, group: Group<'_>, grid: &Grid, errors: &Tensor) -> Result<()> {
    let [m, groups] = grid.scales.matrix("refit")?;
    let count = group.g.shape()[0];
    let params = Params {
        m: m as u32,
        start: group.start as u32,
        count: count as u32,
        group: (group.start / group.size) as u32,
        groups: groups as u32,
        half: u32::from(group.scale_type == ScaleType::F16),
        ridge: group.ridge,
    };
    let given = [group.w.buffer(), group.g.buffer(), group.v.buffer(), group.codes.buffer()];
    rec.dispatch(Dispatch {
        kernel: "refit",
        params: bytemuck::bytes_of(&params),
        inputs: &[&given[..], &[grid.zeros.buffer()]].concat(),
        outputs: &[grid.scales.buffer(), errors.buffer()],
        workgroups: [m.div_ceil(64), 1, 1],
        work: 12.0 * (m * count) as f64,
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
    /// Zero point of the group in each row of the strip.
    zero: Vec<f32>,
    /// Errors of the strip, one slice per column of the group.
    errors: Vec<&'a mut [f32]>,
}

impl pulp::NullaryFnOnce for Fit<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { group, m, first, scale, zero, mut errors } = self;
        let width = scale.len();
        let (mut slope, mut curvature): (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);
        for (c, errors) in errors.iter().enumerate() {
            let place = (group.start + c) * m + first;
            let g = load(group.g.host(), c * m + first, width);
            let v = load(group.v.host(), place, width);
            let codes = &group.codes.host()[place..place + width];
            for lane in 0..width {
                let value = *scale[lane] * (codes[lane] as f32 - zero[lane]);
                slope[lane] += value * (g[lane] + group.ridge * errors[lane]);
                curvature[lane] += value * (v[lane] + group.ridge * value);
            }
        }
        let mut fitted: Lanes = [0.0; LANES];
        for (lane, scale) in scale.into_iter().enumerate() {
            let best = *scale + *scale * (slope[lane] / curvature[lane]);
            if curvature[lane] > 0.0 && best > 0.0 {
                *scale = if group.scale_type == ScaleType::F16 { to_half(best) } else { best };
            }
            fitted[lane] = *scale;
        }
        for (c, errors) in errors.iter_mut().enumerate() {
            let place = (group.start + c) * m + first;
            let w = &group.w.host()[place..place + width];
            let codes = &group.codes.host()[place..place + width];
            for lane in 0..width {
                errors[lane] = w[lane] - fitted[lane] * (codes[lane] as f32 - zero[lane]);
            }
        }
    }
}
