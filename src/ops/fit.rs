//! The fit of scales and offsets to the weights, group by group, before codes are chosen with regard to each other. The shader is
//! `fit`.
//!
//! A range says little about where the weights of a group lie. So the weights are rounded, the scale and the offset are solved for
//! these codes by least squares, and both steps are repeated while the loss falls (Lloyd's algorithm with equidistant centres).

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::{Grid, GridSpec, ScaleType, Steps, Zero};
use crate::ops::{bounded, spread};
use crate::{Error, Result};

/// The most solutions that are tried.
const ROUNDS: usize = 8;
/// Number of lanes of the vectorised loop.
const LANES: usize = 16;

uniform! {
    struct Params of "fit" {
        n: u32,
        group_size: u32,
        groups: u32,
        count: u32,
        stride: u32,
        rounds: u32,
        scale_type: u32,
        offset_type: u32,
        top: f32,
        most: f32,
    }
}

/// Changes scale and offset of every group of `grid` so that `Σ weight_j·(w − ŵ)²` falls. Offsets that share a unit stay at most 0,
/// because the number of units has no sign.
///
/// `w`: `[m, n]`; `weights`, of the columns: `[n, 1]`, not negative; `None` if all are 1. Errors: `Error::Shape` if the shapes do
/// not match, if the grid has no offsets, or if a field of `spec` is out of range.
pub fn fit(rec: &mut Recorder, w: &Tensor, weights: Option<&Tensor>, spec: &GridSpec, grid: &mut Grid) -> Result<()> {
    let [m, n] = w.matrix("fit")?;
    let Zero::Offset(offset_steps) = spec.zero else {
        return Err(Error::shape("fit", format!("{spec:?}, which has no offsets")));
    };
    if !spec.is_possible() {
        return Err(Error::shape("fit", format!("{spec:?}")));
    }
    let groups = n.div_ceil(spec.group_size);
    grid.scales.expect_shape("fit", &[m, groups])?;
    grid.zeros.expect_shape("fit", &[m, groups])?;
    if let Some(weights) = weights {
        weights.expect_shape("fit", &[n, 1])?;
    }
    let most = if matches!(offset_steps, Steps::Shared { .. }) { 0.0 } else { f32::MAX };
    let (scale_type, offset_type) = (spec.scale.own(), offset_steps.own());
    if rec.is_gpu() {
        let workgroups = spread(m * groups);
        let params = Params {
            n: n as u32,
            group_size: spec.group_size as u32,
            groups: groups as u32,
            count: (m * groups) as u32,
            stride: workgroups[0] as u32,
            rounds: ROUNDS as u32,
            scale_type: scale_type.number(),
            offset_type: offset_type.number(),
            top: spec.top(),
            most,
        };
        return rec.dispatch(Dispatch {
            kernel: if weights.is_some() { "fit_weighted" } else { "fit" },
            params: bytemuck::bytes_of(&params),
            inputs: &[Some(w), weights].into_iter().flatten().map(Tensor::buffer).collect::<Vec<_>>(),
            outputs: &[grid.scales.buffer(), grid.zeros.buffer()],
            workgroups,
            work: (ROUNDS * 16 * w.len()) as f64,
        });
    }
    if w.is_empty() {
        return Ok(());
    }
    let ones = vec![1.0; n];
    let weights = weights.map_or(&ones[..], Tensor::host);
    let scales = grid.scales.host_mut().par_chunks_mut(groups);
    let offsets = grid.zeros.host_mut().par_chunks_mut(groups);
    w.host().par_chunks(n).zip(scales).zip(offsets).for_each(|((w, scales), offsets)| {
        let cells = w.chunks(spec.group_size).zip(weights.chunks(spec.group_size));
        for ((w, weights), (scale, offset)) in cells.zip(scales.iter_mut().zip(offsets)) {
            let cell = Cell { w, weights, scale_type, offset_type, top: spec.top(), most, start: (*scale, *offset) };
            (*scale, *offset) = pulp::Arch::new().dispatch(cell);
        }
    });
    Ok(())
}

/// The CPU twin for one group of one row. Returns the scale and the offset.
struct Cell<'a> {
    w: &'a [f32],
    weights: &'a [f32],
    scale_type: ScaleType,
    offset_type: ScaleType,
    /// The largest code.
    top: f32,
    /// The largest offset.
    most: f32,
    /// The scale and the offset at the start.
    start: (f32, f32),
}

/// Sums over the columns of a group.
#[derive(Default)]
struct Sums {
    /// Σ weight.
    weight: f32,
    /// Σ weight·q.
    code: f32,
    /// Σ weight·q².
    square: f32,
    /// Σ weight·w.
    target: f32,
    /// Σ weight·q·w.
    product: f32,
    /// Σ weight·(w − ŵ)².
    loss: f32,
}

impl pulp::NullaryFnOnce for Cell<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn call(self) -> (f32, f32) {
        let (mut now, mut best, mut least) = (self.start, self.start, f32::INFINITY);
        for _ in 0..ROUNDS {
            let sums = self.sums(now);
            if sums.loss < least {
                (least, best) = (sums.loss, now);
            }
            let determinant = sums.weight * sums.square - sums.code * sums.code;
            let exact = (sums.weight * sums.product - sums.code * sums.target) / determinant;
            let scale = self.scale_type.round(exact);
            // With one code in use, or with a scale that is not positive, the numbers stay.
            if determinant > 1e-6 * sums.weight * sums.square && scale > 0.0 {
                let offset = ((sums.target - scale * sums.code) / sums.weight).min(self.most);
                now = (scale, self.offset_type.round(offset));
            }
        }
        best
    }
}

impl Cell<'_> {
    #[inline(always)]
    fn sums(&self, (scale, offset): (f32, f32)) -> Sums {
        let inverse = 1.0 / scale;
        let mut lanes = [[0.0f32; LANES]; 6];
        let mut add = |lane: usize, w: f32, weight: f32| {
            let code = bounded((w - offset) * inverse, 0.0, self.top).round_ties_even();
            let error = w - (scale * code + offset);
            let terms = [1.0, code, code * code, w, code * w, error * error];
            for (sums, term) in lanes.iter_mut().zip(terms) {
                sums[lane] += weight * term;
            }
        };
        let (chunks, weight_chunks) = (self.w.chunks_exact(LANES), self.weights.chunks_exact(LANES));
        let rest = chunks.remainder().iter().zip(weight_chunks.remainder());
        for (w, weights) in chunks.zip(weight_chunks) {
            for lane in 0..LANES {
                add(lane, w[lane], weights[lane]);
            }
        }
        for (lane, (&w, &weight)) in rest.enumerate() {
            add(lane, w, weight);
        }
        let [weight, code, square, target, product, loss] = lanes.map(|sums| sums.iter().sum());
        Sums { weight, code, square, target, product, loss }
    }
}
