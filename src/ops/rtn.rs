//! Rounding to the nearest code of a given grid, one weight at a time. The methods RTN and AWQ round with it. The shader is
//! `rtn`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::Grid;
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
    }
}

/// Computes `q = clamp(round_half_even(w / s) + z, 0, 2^b − 1)`. Returns the codes q and the rounded weights `s·(q − z)`, both
/// `[m, n]`.
///
/// `w`: `[m, n]`; `grid`: s and z, `[m, groups]`; `group_size`: columns per group, of which the last group may have fewer;
/// `bits`: b, 1 to 8. Errors: `Error::Shape` if the shapes do not match, or if `bits` or `group_size` is out of range.
pub fn round(
    rec: &mut Recorder,
    w: &Tensor,
    grid: &Grid,
    group_size: usize,
    bits: u32,
) -> Result<(Tensor<u32>, Tensor)> {
    let [m, n] = w.matrix("rtn")?;
    if group_size == 0 || !(1..=8).contains(&bits) {
        return Err(Error::shape("rtn", format!("{bits} bits in groups of {group_size} columns")));
    }
    let groups = n.div_ceil(group_size);
    grid.scales.expect_shape("rtn", &[m, groups])?;
    grid.zeros.expect_shape("rtn", &[m, groups])?;
    let mut codes = rec.empty(&[m, n])?;
    let mut values = rec.empty(&[m, n])?;
    let top = ((1u32 << bits) - 1) as f32;
    if rec.is_gpu() {
        let (workgroups, stride) = spread_elements(w.len());
        let (n, group_size, groups) = (n as u32, group_size as u32, groups as u32);
        let params = Params { n, group_size, groups, count: w.len() as u32, stride, top };
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
            pulp::Arch::new().dispatch(RoundGroup { w, scale, zero, top, codes, values });
        }
    });
    Ok((codes, values))
}

/// The CPU twin for one group of one row, in the form that pulp compiles for each instruction set.
struct RoundGroup<'a> {
    w: &'a [f32],
    scale: f32,
    zero: f32,
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
            let level = bounded(w / self.scale, -self.zero, self.top - self.zero).round_ties_even();
            *code = ops::code(level + self.zero);
            *value = self.scale * level;
        }
    }
}
