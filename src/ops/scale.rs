//! Multiplication in place: of all elements by one number, or of each column of a matrix by a number of its own. The shader is
//! `scale`.
//!
//! The columns serve for the diagonal scalings of AWQ and QuIP, and for setting the columns of dead inputs to zero.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Buffer, Dispatch, Recorder, Tensor};
use crate::ops::spread_elements;

uniform! {
    struct Params of "scale" {
        count: u32,
        stride: u32,
        n: u32,
        factor: f32,
    }
}

/// `x *= factor` for every element.
pub fn scale(rec: &mut Recorder, x: &mut Tensor, factor: f32) -> Result<()> {
    if rec.is_gpu() {
        return dispatch(rec, "scale", &[], x, (1, factor));
    }
    x.host_mut().par_chunks_mut(1 << 14).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
    Ok(())
}

/// `w[r, i] *= factors[i]`. `w`: `[m, n]`; `factors`: `[n]`. Errors: `Error::Shape` if the shapes do not match.
pub fn scale_columns(rec: &mut Recorder, w: &mut Tensor, factors: &Tensor) -> Result<()> {
    let [_, n] = w.matrix("scale_columns")?;
    factors.expect_shape("scale_columns", &[n])?;
    if rec.is_gpu() {
        return dispatch(rec, "scale_columns", &[factors.buffer()], w, (n, 1.0));
    }
    w.host_mut().par_chunks_mut(n.max(1)).with_min_len(64).for_each(|row| {
        for (value, factor) in row.iter_mut().zip(factors.host()) {
            *value *= factor;
        }
    });
    Ok(())
}

/// Dispatches one invocation per element of `w`. `n`: number of columns, for `scale_columns`; `factor`: for `scale`.
fn dispatch(
    rec: &mut Recorder,
    kernel: &'static str,
    inputs: &[&Buffer],
    w: &mut Tensor,
    (n, factor): (usize, f32),
) -> Result<()> {
    let (workgroups, stride) = spread_elements(w.len());
    let params = Params { count: w.len() as u32, stride, n: n as u32, factor };
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs,
        outputs: &[w.buffer()],
        workgroups,
        work: w.len() as f64,
    })
}
