//! Rounding to the nearest code of a given grid.

use rayon::prelude::*;

use crate::device::Recorder;
use crate::ops::grid::Grid;
use crate::ops::{bounded, not_written};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// `q = clamp(round_half_even(w / s) + z, 0, 2^b − 1)`; returns the codes and `s(q − z)`, both `[m, n]`.
///
/// `w`: `[m, n]`; `grid`: of groups of `group_size` columns, the last perhaps shorter. Errors: `Error::Shape`.
pub fn round(
    rec: &mut Recorder,
    w: &Tensor,
    grid: &Grid,
    group_size: usize,
    bits: u32,
) -> Result<(Tensor<u32>, Tensor)> {
    let [m, n] = w.matrix("rtn")?;
    if group_size == 0 {
        return Err(Error::shape("rtn", "groups of no columns"));
    }
    let groups = n.div_ceil(group_size);
    grid.scales.expect_shape("rtn", &[m, groups])?;
    grid.zeros.expect_shape("rtn", &[m, groups])?;
    let mut codes = rec.empty(&[m, n])?;
    let mut values = rec.empty(&[m, n])?;
    if rec.is_gpu() {
        return Err(not_written(rec, "this op"));
    }
    if w.is_empty() {
        return Ok((codes, values));
    }
    let top = ((1u32 << bits) - 1) as f32;
    let rows = w.host().par_chunks(n).zip(grid.scales.host().par_chunks(groups));
    let rows = rows.zip(grid.zeros.host().par_chunks(groups));
    let out = codes.host_mut().par_chunks_mut(n).zip(values.host_mut().par_chunks_mut(n));
    out.zip(rows).for_each(|((codes, values), ((w, scales), zeros))| {
        let groups = codes.chunks_mut(group_size).zip(values.chunks_mut(group_size)).zip(w.chunks(group_size));
        for (((codes, values), w), (&scale, &zero)) in groups.zip(scales.iter().zip(zeros)) {
            pulp::Arch::new().dispatch(|| round_group(w, scale, zero, top, codes, values));
        }
    });
    Ok((codes, values))
}

#[inline(always)]
fn round_group(w: &[f32], scale: f32, zero: f32, top: f32, codes: &mut [u32], values: &mut [f32]) {
    let inverse = 1.0 / scale;
    for ((w, code), value) in w.iter().zip(codes).zip(values) {
        let level = bounded(w * inverse, -zero, top - zero).round_ties_even();
        *code = (level + zero) as u32;
        *value = scale * level;
    }
}
