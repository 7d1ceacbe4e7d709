//! What is kept of the activations of a group of linears: H = X̂X̂ᵀ, D = δX̂ᵀ and Σ|x̂| (algorithms.md §1).
//!
//! The pipeline accumulates them chunk by chunk, and the solver consumes them.

use crate::device::Recorder;
use crate::ops::add::add_assign;
use crate::ops::gram::{self, Packed};
use crate::ops::magnitude;
use crate::ops::pieces::Pieces;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Which quantities are accumulated beside H.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantities {
    /// D.
    pub error_correlation: bool,
    /// Σ|x̂|.
    pub magnitudes: bool,
}

/// H, D and Σ|x̂| over some tokens: plain sums, neither normalised nor damped.
#[derive(Debug)]
pub struct Statistics {
    /// H, symmetric `[n, n]`.
    pub hessian: Packed,
    /// D, `[n, n]` with δ on the rows; `None` where no linear is corrected.
    pub error_correlation: Option<Pieces>,
    /// Σ|x̂| per input; `None` where the method does not use it.
    pub magnitudes: Option<Magnitudes>,
}

/// Σ|x̂| per input of the quantized stream.
#[derive(Debug)]
pub struct Magnitudes {
    sums: Tensor,
    tokens: usize,
}

impl Magnitudes {
    /// Reads mean|x̂| per input; 0 over no tokens.
    pub async fn mean(&self, rec: &mut Recorder) -> Result<Vec<f32>> {
        let sums = rec.read(&self.sums).await?;
        Ok(sums.into_iter().map(|sum| sum / self.tokens.max(1) as f32).collect())
    }
}

impl Statistics {
    /// Zeros for a group of `n` inputs.
    pub fn zeros(rec: &mut Recorder, n: usize, quantities: Quantities) -> Result<Self> {
        let Quantities { error_correlation, magnitudes } = quantities;
        Ok(Self {
            error_correlation: error_correlation.then(|| Pieces::zeros(rec, n)).transpose()?,
            hessian: Packed::zeros(rec, n)?,
            magnitudes: match magnitudes {
                true => Some(Magnitudes { sums: rec.zeros(&[n])?, tokens: 0 }),
                false => None,
            },
        })
    }

    /// Adds the tokens of one chunk. `x` and `x_hat`: `[tokens, n]`, from the full-precision and from the quantized stream.
    pub fn accumulate(&mut self, rec: &mut Recorder, x: &Tensor, x_hat: &Tensor) -> Result<()> {
        gram::accumulate(rec, x_hat, &mut self.hessian)?;
        if let Some(Magnitudes { sums, tokens }) = &mut self.magnitudes {
            magnitude::accumulate(rec, x_hat, sums)?;
            *tokens += x_hat.shape()[0];
        }
        match &mut self.error_correlation {
            Some(d) => d.accumulate_cross(rec, x, x_hat),
            None => Ok(()),
        }
    }

    /// Adds the statistics of other tokens. Errors: `Error::Shape` if they are of other quantities.
    pub fn merge(&mut self, rec: &mut Recorder, other: &Self) -> Result<()> {
        self.hessian.add_assign(rec, &other.hessian)?;
        match (&mut self.magnitudes, &other.magnitudes) {
            (Some(own), Some(other)) => {
                add_assign(rec, &mut own.sums, &other.sums)?;
                own.tokens += other.tokens;
            }
            (None, None) => {}
            _ => return Err(Error::shape("merge", "statistics with and without magnitudes")),
        }
        match (&mut self.error_correlation, &other.error_correlation) {
            (Some(d), Some(other)) => d.add_assign(rec, other),
            (None, None) => Ok(()),
            _ => Err(Error::shape("merge", "statistics with and without D")),
        }
    }
}
