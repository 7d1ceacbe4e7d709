//! Sums over all elements, as at most 256 partial sums that the host adds up in f64.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{sum, vectorised};

/// Partial sums at most.
const PARTIALS: usize = 256;
/// Elements per partial sum at least.
const SHORTEST: usize = 4096;

uniform! {
    struct Params of "reduce" {
        count: u32,
        chunk: u32,
    }
}

/// What is added up.
#[derive(Debug, Clone, Copy)]
enum Term {
    Product,
    SquaredDifference,
}

/// Partial sums of `Σ a_i·b_i`, for [`total`]. Both of one shape. Errors: `Error::Shape` if the shapes differ.
pub fn dot(rec: &mut Recorder, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.expect_shape("dot", a.shape())?;
    partials(rec, Term::Product, a, b)
}

/// Partial sums of `Σ (a_i − b_i)²`, for [`total`]. Both of one shape. Errors: `Error::Shape` if the shapes differ.
pub fn squared_difference(rec: &mut Recorder, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.expect_shape("squared_difference", a.shape())?;
    partials(rec, Term::SquaredDifference, a, b)
}

/// Partial sums of `Σ a_i²`, for [`total`].
pub fn sum_squares(rec: &mut Recorder, a: &Tensor) -> Result<Tensor> {
    partials(rec, Term::Product, a, a)
}

/// Waits for the partial sums and adds them up.
pub async fn total(rec: &mut Recorder, partials: &Tensor) -> Result<f64> {
    Ok(rec.read(partials).await?.iter().map(|&partial| f64::from(partial)).sum())
}

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
