//! What survives of the activations of a group of linears: H = X̂X̂ᵀ and D = δX̂ᵀ (algorithms.md §1), for AWQ also mean|x̂|.

use crate::device::Recorder;
use crate::ops::add::add_assign;
use crate::ops::gram::{self, Packed};
use crate::ops::magnitude;
use crate::ops::pieces::Pieces;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// H and D over some tokens: plain sums, neither normalised nor damped.
#[derive(Debug)]
pub struct Statistics {
    /// H, symmetric `[n, n]`.
    pub hessian: Packed,
    /// D, `[n, n]`, δ on the rows; `None` where no correction was asked for.
    pub error_correlation: Option<Pieces>,
    /// Σ|x̂| per input; `None` where the method has no use for it.
    pub magnitudes: Option<Magnitudes>,
}

/// Σ|x̂| per input of the quantized stream.
#[derive(Debug)]
pub struct Magnitudes {
    sums: Tensor,
    tokens: usize,
}

impl Magnitudes {
    /// mean|x̂| per input, read back; 0 over no tokens.
    pub async fn mean(&self, rec: &mut Recorder) -> Result<Vec<f32>> {
        let sums = rec.read(&self.sums).await?;
        Ok(sums.into_iter().map(|sum| sum / self.tokens.max(1) as f32).collect())
    }
}

impl Statistics {
    /// Zeros for inputs of `n` columns; with D if `correlate`.
    pub fn zeros(rec: &mut Recorder, n: usize, correlate: bool) -> Result<Self> {
        let error_correlation = if correlate { Some(Pieces::zeros(rec, n)?) } else { None };
        Ok(Self { hessian: Packed::zeros(rec, n)?, error_correlation, magnitudes: None })
    }

    /// These statistics, before any token, with magnitudes.
    pub fn with_magnitudes(mut self, rec: &mut Recorder) -> Result<Self> {
        self.magnitudes = Some(Magnitudes { sums: rec.zeros(&[self.hessian.n()])?, tokens: 0 });
        Ok(self)
    }

    /// Adds the tokens of one chunk. `x`, `x_hat`: `[tokens, n]`, the full-precision and the quantized stream.
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

    /// Adds what was gathered over other tokens.
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

/// The diagonal of H on the host, from which damping, dead inputs and the activation order follow.
#[derive(Debug, Clone)]
pub struct Damping {
    diagonal: Vec<f32>,
    mean: f64,
}

impl Damping {
    /// Reads diag(H). Errors: `Error::NotFinite` naming `place` if an activation overflowed.
    pub async fn of(rec: &mut Recorder, hessian: &Packed, place: &str) -> Result<Self> {
        let diagonal = gram::diagonal(rec, hessian).await?;
        if diagonal.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                place: format!("{place}: the Hessian of its input"),
                remedy: "the activations overflow; check the weights, or calibrate on other text".into(),
            });
        }
        // A dead input counts as 1, as in the public implementations of GPTQ.
        let mean =
            diagonal.iter().map(|&v| if v == 0.0 { 1.0 } else { f64::from(v) }).sum::<f64>() / diagonal.len() as f64;
        Ok(Self { diagonal, mean })
    }

    /// diag(H).
    pub fn values(&self) -> &[f32] {
        &self.diagonal
    }

    /// λ = ρ·mean(diag H), dead inputs counted as 1.
    pub fn ridge(&self, rho: f64) -> f32 {
        (rho * self.mean) as f32
    }

    /// 0 for each input that no token ever excited, else 1.
    pub fn alive(&self) -> Vec<f32> {
        self.diagonal.iter().map(|&v| if v == 0.0 { 0.0 } else { 1.0 }).collect()
    }

    /// The inputs by falling diag H; equal ones in their own order. Dead inputs come where their 1 puts them.
    pub fn activation_order(&self) -> Vec<u32> {
        let value = |i: u32| if self.diagonal[i as usize] == 0.0 { 1.0 } else { self.diagonal[i as usize] };
        let mut order: Vec<u32> = (0..self.diagonal.len() as u32).collect();
        order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
        order
    }
}
