//! H of a group of linears as the solvers read it: its diagonal, its damping, and the Cholesky factor of H + λI.
//!
//! GPTQ, QuIP and the correction all start here.

use crate::device::Recorder;
use crate::ops::cholesky::{self, Factor};
use crate::ops::gram::{self, Packed};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// ρ_r grows tenfold until the factorisation succeeds. Beyond this value the search ends.
const MAX_DAMPING: f64 = 1e6;

/// H of a group, not damped, with its diagonal.
#[derive(Debug, Clone, Copy)]
pub struct Curvature<'a> {
    /// H, `[n, n]`.
    pub hessian: &'a Packed,
    /// The diagonal of `hessian`.
    pub diagonal: &'a HessianDiagonal,
    /// Name of the group in errors.
    pub place: &'a str,
}

impl Curvature<'_> {
    /// Factors H + λI with its columns in `order`, starting at λ = `damping`·mean(diag H) and multiplying the damping by ten until
    /// there is a factor.
    ///
    /// Errors: `Error::NotFinite` if there is none. The message calls the matrix `matrix`.
    pub(super) async fn factor(
        &self,
        rec: &mut Recorder,
        order: Vec<u32>,
        mut damping: f64,
        matrix: &str,
    ) -> Result<DampedFactor> {
        while damping <= MAX_DAMPING {
            let ridge = self.diagonal.ridge(damping);
            if let Some(factor) = cholesky::factor(rec, self.hessian, &order, ridge).await? {
                return Ok(DampedFactor { factor, order, damping });
            }
            damping *= 10.0;
        }
        Err(Error::NotFinite {
            place: format!("{}: the Cholesky factor of the {matrix}", self.place),
            remedy: "check the calibration text and the weights".into(),
        })
    }
}

/// The Cholesky factor R of H + λI in an order of the columns.
#[derive(Debug)]
pub(super) struct DampedFactor {
    pub factor: Factor,
    /// Processed column i is original column `order[i]`.
    pub order: Vec<u32>,
    /// λ as a share of mean(diag H).
    pub damping: f64,
}

impl DampedFactor {
    /// R_jj² by original column j, relative to their mean, `[n, 1]`.
    ///
    /// They weigh the columns when a grid is chosen, since the loss tr(E·(H + λI)·Eᵀ) is the sum of R_jj²·(t_j − q_j)² over rows
    /// and columns, with t_j the value that the column loop rounds.
    pub async fn pivots(&self, rec: &mut Recorder) -> Result<Tensor> {
        let n = self.order.len();
        let diagonal: Vec<f32> = gram::diagonal(rec, self.factor.m()).await?;
        let mean = diagonal.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>() / n as f64;
        let mut pivots = vec![0.0; n];
        // The stored factor is that of the reversed order.
        for (&column, r) in self.order.iter().rev().zip(diagonal) {
            pivots[column as usize] = (f64::from(r).powi(2) / mean) as f32;
        }
        rec.upload(&[n, 1], pivots)
    }
}

/// The diagonal of H on the host. Damping, dead inputs and the activation order follow from it.
#[derive(Debug, Clone)]
pub struct HessianDiagonal {
    values: Vec<f32>,
    mean: f64,
}

impl HessianDiagonal {
    /// Reads diag H. Errors: `Error::NotFinite` naming `place` if an activation overflowed.
    pub async fn of(rec: &mut Recorder, hessian: &Packed, place: &str) -> Result<Self> {
        let values = gram::diagonal(rec, hessian).await?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite {
                place: format!("{place}: the Hessian of its input"),
                remedy: "the activations overflow; check the weights, or calibrate on other text".into(),
            });
        }
        // A dead input counts as 1, as in the public implementations of GPTQ.
        let mean = values.iter().map(|&v| if v == 0.0 { 1.0 } else { f64::from(v) }).sum::<f64>() / values.len() as f64;
        Ok(Self { values, mean })
    }

    /// diag H.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// λ = ρ·mean(diag H), with dead inputs counted as 1.
    pub fn ridge(&self, rho: f64) -> f32 {
        (rho * self.mean) as f32
    }

    /// 0 for each dead input, which is one that no token excited; 1 for the others.
    pub fn alive(&self) -> Vec<f32> {
        self.values.iter().map(|&v| if v == 0.0 { 0.0 } else { 1.0 }).collect()
    }

    /// The inputs by falling diag H. Equal inputs keep their order, and dead inputs count as 1.
    pub fn activation_order(&self) -> Vec<u32> {
        let value = |i: u32| if self.values[i as usize] == 0.0 { 1.0 } else { self.values[i as usize] };
        let mut order: Vec<u32> = (0..self.values.len() as u32).collect();
        order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
        order
    }
}
