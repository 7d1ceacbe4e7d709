//! Selection of columns: a part of a projection that a checkpoint stores in one piece, such as the queries of a fused projection
//! of queries, keys and values. The shader is `columns`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread_elements;
use crate::{Error, Result};

uniform! {
    struct Params of "columns" {
        count: u32,
        stride: u32,
        period: u32,
        start: u32,
        width: u32,
    }
}

/// Takes the columns `start..start + width` of every run of `period` columns: `out[t, r·width + i] = x[t, r·period + start + i]`
/// for 0 ≤ i < width and 0 ≤ r < n.
///
/// `x`: `[tokens, n·period]`; the result: `[tokens, n·width]`. With `period` equal to the width of `x` it is one range of columns.
/// Errors: `Error::Shape` if `x` does not consist of whole runs, or if the columns are not in a run.
pub fn columns(rec: &mut Recorder, x: &Tensor, period: usize, start: usize, width: usize) -> Result<Tensor> {
    let [tokens, columns] = x.matrix("columns")?;
    if period == 0 || !columns.is_multiple_of(period) || width == 0 || start + width > period {
        let detail = format!("columns {start} to {} of every {period}, of x {:?}", start + width, x.shape());
        return Err(Error::shape("columns", detail));
    }
    let mut out = rec.empty(&[tokens, columns / period * width])?;
    if rec.is_gpu() {
        let (workgroups, stride) = spread_elements(out.len());
        let params =
            Params { count: out.len() as u32, stride, period: period as u32, start: start as u32, width: width as u32 };
        rec.dispatch(Dispatch {
            kernel: "columns",
            params: bytemuck::bytes_of(&params),
            inputs: &[x.buffer()],
            outputs: &[out.buffer()],
            workgroups,
            work: 4.0 * out.len() as f64,
        })?;
    } else {
        let runs = x.host().par_chunks_exact(period);
        out.host_mut().par_chunks_exact_mut(width).zip(runs).with_min_len(1024usize.div_ceil(width)).for_each(
            |(out, run)| {
                out.copy_from_slice(&run[start..start + width]);
            },
        );
    }
    Ok(out)
}
