//! Sums over all elements of one or two tensors. The device computes at most 256 partial sums, and the host adds them in f64. The
//! shader is `reduce`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{sum, vectorised};

/// The largest number of partial sums.
const PARTIALS: usize = 256;
/// The least number of elements per partial sum.
const SHORTEST: usize = 4096;

uniform! {
    struct Params of "reduce" {
        count: u32,
        chunk: u32,
    }
}

/// The term that is summed.
#[derive(Debug, Clone, Copy)]
enum Term {
    Product,
    SquaredDifference,
}

/// Returns the partial sums of `Σ a_i·b_i`, which [`total`] adds. `a` and `b` have the same shape. Errors: `Error::Shape` if the
/// shapes differ.
pub fn dot(rec: &mut Recorder, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.expect_shape("dot", a.shape())?;
    partials(rec, Term::Product, a, b)
}

/// Returns the partial sums of `Σ (a_i − b_i)²`, which [`total`] adds. `a` and `b` have the same shape. Errors: `Error::Shape`
/// if the shapes differ.
pub fn squared_difference(rec: &mut Recorder, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.expect_shape("squared_difference", a.shape())?;
    partials(rec, Term::SquaredDifference, a, b)
}

/// Returns the partial sums of `Σ a_i²`, which [`total`] adds.
pub fn sum_squares(rec: &mut Recorder, a: &Tensor) -> Result<Tensor> {
    partials(rec, Term::Product, a, a)
}

/// Reads the partial sums and returns their sum. Waits for the GPU.
pub async fn total(rec: &mut Recorder, partials: &Tensor) -> Result<f64> {
    Ok(rec.read(partials).await?.iter().map(|&partial| f64::from(partial)).sum())
}

/// Returns the partial sums over consecutive chunks.
fn partials(rec: &mut Recorder, term: Term, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let chunk = a.len().div_ceil(PARTIALS).max(SHORTEST);
    let mut out = rec.empty(&[a.len().div_ceil(chunk)])?;
    if rec.is_gpu() {
        let params = Params { count: a.len() as u32, chunk: chunk as u32 };
        rec.dispatch(Dispatch {
            kernel: match term {
                Term::Product => "reduce_product",
                Term::SquaredDifference => "reduce_difference",
            },
            params: bytemuck::bytes_of(&params),
            inputs: &[a.buffer(), b.buffer()],
            outputs: &[out.buffer()],
            workgroups: [out.len(), 1, 1],
            work: 3.0 * a.len() as f64,
        })?;
        return Ok(out);
    }
    let chunks = a.host().par_chunks(chunk).zip(b.host().par_chunks(chunk));
    chunks.zip(out.host_mut()).for_each(|((a, b), out)| {
        *out = vectorised(
            #[inline(always)]
            || match term {
                Term::Product => sum(a, b, |a, b| a * b),
                Term::SquaredDifference => sum(a, b, |a, b| (a - b) * (a - b)),
            },
        ) as f32;
    });
    Ok(out)
}
