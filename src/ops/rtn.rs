//! Rounding to the nearest code of a given grid, one weight at a time. The methods RTN and AWQ round with it. The shader is
//! `rtn`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::{self, bounded, spread_elements};
use crate::{Error, Result};

uniform! {
    struct Params of "rtn" {
        n: u32,
        group_size: u32,
        groups: u32,
        count: u32,
        stride: u32,
        top: f32,
        offsets: u32,
    }
}

/// Computes `q = clamp(round_half_even((w − o) / s) + z, 0, 2^b − 1)`, where z or o is 0. Returns the codes q and the rounded
/// weights `s·(q − z) + o`, both `[m, n]`.
///
/// `w`: `[m, n]`; `grid`: s, and z or o, `[m, groups]`. Errors: `Error::Shape` if the shapes do not match, or if bits or group
/// size of `spec` are out of range.
pub fn round(rec: &mut Recorder, w: &Tensor, grid: &Grid, spec: &GridSpec) -> Result<(Tensor<u32>, Tensor)> {
    let [m, n] = w.matrix("rtn")?;
    let group_size = spec.group_size;
    if !spec.is_possible() {
        return Err(Error::shape("rtn", format!("{spec:?}")));
    }
    let groups = n.div_ceil(group_size);
    grid.scales.expect_shape("rtn", &[m, groups])?;
    grid.zeros.expect_shape("rtn", &[m, groups])?;
    let mut codes = rec.empty(&[m, n])?;
    let mut values = rec.empty(&[m, n])?;
    let (top, offsets) = (spec.top(), spec.has_offsets());
    if rec.is_gpu() {
        let (workgroups, stride) = spread_elements(w.len());
        let (n, group_size, groups) = (n as u32, group_size as u32, groups as u32);
        let params = Params { n, group_size, groups, count: w.len() as u32, stride, top, offsets: u32::from(offsets) };
        rec.dispatch(Dispatch {
            kernel: "rtn",
            params: bytemuck::bytes_of(&params),
            inputs: &[w.buffer(), grid.scales.buffer(), grid.zeros.buffer()],
            outputs: &[codes.buffer(), values.buffer()],
            workgroups,
            work: 8.0 * w.len() as f64,
        })?;
        return Ok((codes, values));
    }
    if w.is_empty() {
        return Ok((codes, values));
    }
    let rows = w.host().par_chunks(n).zip(grid.scales.host().par_chunks(groups));
    let rows = rows.zip(grid.zeros.host().par_chunks(groups));
    let out = codes.host_mut().par_chunks_mut(n).zip(values.host_mut().par_chunks_mut(n));
    out.zip(rows).for_each(|((codes, values), ((w, scales), zeros))| {
        let groups = codes.chunks_mut(group_size).zip(values.chunks_mut(group_size)).zip(w.chunks(group_size));
        for (((codes, values), w), (&scale, &zero)) in groups.zip(scales.iter().zip(zeros)) {
            let (zero, offset) = if offsets { (0.0, zero) } else { (zero, 0.0) };
            pulp::Arch::new().dispatch(RoundGroup { w, scale, zero, offset, top, codes, values });
        }
    });
    Ok((codes, values))
}

/// The CPU twin for one group of one row, in the form that pulp compiles for each instruction set.
struct RoundGroup<'a> {
    w: &'a [f32],
    scale: f32,
    zero: f32,
    offset: f32,
    top: f32,
    codes: &'a mut [u32],
    values: &'a mut [f32],
}

impl pulp::NullaryFnOnce for RoundGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // This divides by s instead of multiplying by 1/s. The ends of a symmetric range are exact ties, and the quotient keeps
        // them exact.
        for ((w, code), value) in self.w.iter().zip(self.codes).zip(self.values) {
            let x = (w - self.offset) / self.scale;
            let level = bounded(x, -self.zero, self.top - self.zero).round_ties_even();
            *code = ops::code(level + self.zero);
            *value = self.scale * level + self.offset;
        }
    }
}
