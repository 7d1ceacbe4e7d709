//! Quantization Error Propagation (Arai & Ichikawa, arXiv 2504.09629): W*(α) = W + α·W·D·(H + λI)⁻¹ (algorithms.md §3).
//!
//! The correction undoes the error that arrives at a layer, as far as a linear map can.

use crate::device::Recorder;
use crate::error::{Setting, phrase};
use crate::ops::cholesky::{self, Factor};
use crate::ops::gram::Packed;
use crate::ops::pieces::Pieces;
use crate::ops::scale::scale_columns;
use crate::ops::solve::solve_rows;
use crate::quant::{HessianDiagonal, Statistics};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The Cholesky factor of H + λI, shared by all linears of a group.
#[derive(Debug)]
pub struct Corrector {
    factor: Factor,
}

impl Corrector {
    /// Factors H + λI. `diagonal`: the diagonal of `hessian`; `rho`: λ as a share of its mean.
    ///
    /// Errors: `Error::NotFinite` naming `place` if there is no factor, which λ > 0 rules out in exact arithmetic.
    pub async fn new(
        rec: &mut Recorder,
        hessian: &Packed,
        diagonal: &HessianDiagonal,
        rho: f64,
        place: &str,
    ) -> Result<Self> {
        let order: Vec<u32> = (0..hessian.n() as u32).collect();
        match cholesky::factor(rec, hessian, &order, diagonal.ridge(rho)).await? {
            Some(factor) => Ok(Self { factor }),
            None => Err(Error::NotFinite {
                place: format!("{place}: the Cholesky factor of the damped Hessian"),
                remedy: phrase!["raise ", Setting::CorrectionDamping, ", or calibrate on more text"],
            }),
        }
    }

    /// Δ = W·D·(H + λI)⁻¹, by two triangular solves. The ridge pulls W* to W, so D is never merged into H.
    ///
    /// `weight`: W `[m, n]` with the columns of dead inputs set to zero; `error_correlation`: D `[n, n]`, δ on the rows. The
    /// result is `[m, n]`.
    pub fn correction(&self, rec: &mut Recorder, weight: &Tensor, error_correlation: &Pieces) -> Result<Tensor> {
        let output_correlation = error_correlation.left_product(rec, weight)?;
        solve_rows(rec, &self.factor, output_correlation)
    }
}

/// The corrections of a group's linears, by one set of statistics.
#[derive(Debug)]
pub(super) struct GroupCorrection<'a> {
    diagonal: HessianDiagonal,
    /// 0 for each dead input, 1 for the others; `[n]`.
    alive: Tensor,
    /// The factor, and D; `None` where the statistics have no D.
    corrector: Option<(Corrector, &'a Pieces)>,
}

impl<'a> GroupCorrection<'a> {
    /// `rho`: λ as a share of mean(diag H). Errors: as of [`HessianDiagonal::of`] and [`Corrector::new`].
    pub async fn new(rec: &mut Recorder, statistics: &'a Statistics, rho: f64, place: &str) -> Result<Self> {
        let hessian = &statistics.hessian;
        let diagonal = HessianDiagonal::of(rec, hessian, place).await?;
        let corrector = match &statistics.error_correlation {
            Some(d) => Some((Corrector::new(rec, hessian, &diagonal, rho, place).await?, d)),
            None => None,
        };
        Ok(Self { alive: rec.upload(&[hessian.n()], diagonal.alive())?, diagonal, corrector })
    }

    /// W with the columns of dead inputs set to zero. The correction starts from it, and GPTQ rounds it.
    pub fn without_dead(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Tensor> {
        let mut weight = rec.duplicate(weight)?;
        scale_columns(rec, &mut weight, &self.alive)?;
        Ok(weight)
    }

    /// Δ of the linear with the weight `weight`, which has no columns of dead inputs; `None` where the statistics have no D.
    pub fn correction(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Option<Tensor>> {
        self.corrector.as_ref().map(|(corrector, d)| corrector.correction(rec, weight, d)).transpose()
    }

    /// diag H, which the base quantizer needs, too.
    pub fn into_diagonal(self) -> HessianDiagonal {
        self.diagonal
    }
}
