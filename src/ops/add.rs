//! Sums in place: residual connections, scaled corrections, and the bias of a linear layer. The shader is `add`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread_elements;

uniform! {
    struct Params of "add" {
        count: u32,
        stride: u32,
        width: u32,
        factor: f32,
    }
}

/// `a += b`. `a` and `b` have the same shape. Errors: `Error::Shape` if the shapes differ.
pub fn add_assign(rec: &mut Recorder, a: &mut Tensor, b: &Tensor) -> Result<()> {
    add_scaled(rec, a, 1.0, b)
}

/// `a += factor·b`. `a` and `b` have the same shape. Errors: `Error::Shape` if the shapes differ.
pub fn add_scaled(rec: &mut Recorder, a: &mut Tensor, factor: f32, b: &Tensor) -> Result<()> {
    b.expect_shape("add_scaled", a.shape())?;
    if rec.is_gpu() {
        return dispatch(rec, "add_scaled", a, b, factor);
    }
    const CHUNK: usize = 1 << 14;
    a.host_mut().par_chunks_mut(CHUNK).zip(b.host().par_chunks(CHUNK)).for_each(|(a, b)| {
        for (a, b) in a.iter_mut().zip(b) {
            *a += factor * b;
        }
    });
    Ok(())
}

/// `y[t, i] += bias[i]`.
///
/// `y`: `[tokens, width]`; `bias`: `[width]`. Errors: `Error::Shape` if the shapes do not match.
pub fn add_bias(rec: &mut Recorder, y: &mut Tensor, bias: &Tensor) -> Result<()> {
    let [_, width] = y.matrix("add_bias")?;
    bias.expect_shape("add_bias", &[width])?;
    if y.is_empty() {
        return Ok(());
    }
    if rec.is_gpu() {
        return dispatch(rec, "add_bias", y, bias, 1.0);
    }
    y.host_mut().par_chunks_mut(width).with_min_len(64).for_each(|y| {
        for (y, bias) in y.iter_mut().zip(bias.host()) {
            *y += bias;
        }
    });
    Ok(())
}

/// Adds `b` to `a`. `a` has as many elements as `b`, or consists of rows with that many elements.
fn dispatch(rec: &mut Recorder, kernel: &'static str, a: &mut Tensor, b: &Tensor, factor: f32) -> Result<()> {
    let (workgroups, stride) = spread_elements(a.len());
    let params = Params { count: a.len() as u32, stride, width: b.len() as u32, factor };
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &[b.buffer()],
        outputs: &[a.buffer()],
        workgroups,
        work: 2.0 * a.len() as f64,
    })
}
