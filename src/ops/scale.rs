//! Multiplication of each column of a matrix by a factor. It serves for the diagonal scalings of AWQ and QuIP, and for setting
//! the columns of dead inputs to zero. The shader is `scale_columns`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread_elements;

uniform! {
    struct Params of "scale_columns" {
        n: u32,
        count: u32,
        stride: u32,
    }
}

/// `w[r, i] *= factors[i]`. `w`: `[m, n]`; `factors`: `[n]`. Errors: `Error::Shape` if the shapes do not match.
pub fn scale_columns(rec: &mut Recorder, w: &mut Tensor, factors: &Tensor) -> Result<()> {
    let [_, n] = w.matrix("scale_columns")?;
    factors.expect_shape("scale_columns", &[n])?;
    if rec.is_gpu() {
        let (workgroups, stride) = spread_elements(w.len());
        let params = Params { n: n as u32, count: w.len() as u32, stride };
        return rec.dispatch(Dispatch {
            kernel: "scale_columns",
            params: bytemuck::bytes_of(&params),
            inputs: &[factors.buffer()],
            outputs: &[w.buffer()],
            workgroups,
            work: w.len() as f64,
        });
    }
    w.host_mut().par_chunks_mut(n.max(1)).with_min_len(64).for_each(|row| {
        for (value, factor) in row.iter_mut().zip(factors.host()) {
            *value *= factor;
        }
    });
    Ok(())
}
