//! Quantization Error Propagation (arXiv 2504.09629): the weight that undoes, as far as a linear map can, the error
//! that arrives at a layer. W*(α) = W + α·W·D·(H + λI)⁻¹ (algorithms.md §3).

use crate::device::Recorder;
use crate::error::{Setting, phrase};
use crate::ops::cholesky::{self, Factor};
use crate::ops::gram::Packed;
use crate::ops::pieces::Pieces;
use crate::ops::solve::solve_rows;
use crate::quant::Damping;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// H + λI, factored once for all linears of a group.
#[derive(Debug)]
pub struct Corrector {
    factor: Factor,
}

impl Corrector {
    /// `diagonal`: of `hessian`; `rho`: λ as a share of its mean.
    ///
    /// Errors: `Error::NotFinite` naming `place` if H + λI has no Cholesky factor, which λ > 0 rules out in exact arithmetic.
    pub async fn new(rec: &mut Recorder, hessian: &Packed, diagonal: &Damping, rho: f64, place: &str) -> Result<Self> {
        let order: Vec<u32> = (0..hessian.n() as u32).collect();
        match cholesky::factor(rec, hessian, &order, diagonal.ridge(rho)).await? {
            Some(factor) => Ok(Self { factor }),
            None => Err(Error::NotFinite {
                place: format!("{place}: the Cholesky factor of the damped Hessian"),
                remedy: phrase!["raise ", Setting::CorrectionDamping, ", or calibrate on more text"],
            }),
        }
    }

    /// Δ = W·D·(H + λI)⁻¹, by two triangular solves; the ridge pulls W* to W, so D is never merged into H.
    ///
    /// `weight`: W `[m, n]` with the columns of dead inputs set to zero; `error_correlation`: D `[n, n]`, δ on the rows. The
    /// result is `[m, n]`.
    pub fn correction(&self, rec: &mut Recorder, weight: &Tensor, error_correlation: &Pieces) -> Result<Tensor> {
        let arriving = error_correlation.left_product(rec, weight)?;
        solve_rows(rec, &self.factor, arriving)
    }
}
