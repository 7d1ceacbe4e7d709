//! The propagation strength that held-out tokens ask for, and the score that guards it (algorithms.md §3).

use crate::Result;
use crate::device::Recorder;
use crate::ops::add::add_scaled;
use crate::ops::gram::Packed;
use crate::ops::pieces::{Pieces, symmetric_product};
use crate::ops::reduce::{dot, total};
use crate::quant::Statistics;
use crate::tensor::Tensor;

/// H and D of tokens that no correction was fitted on.
#[derive(Debug)]
pub struct HeldOut {
    hessian: Packed,
    error_correlation: Pieces,
}

impl HeldOut {
    /// `None` if the statistics have no D.
    pub fn new(statistics: Statistics) -> Option<Self> {
        let hessian = statistics.hessian;
        statistics.error_correlation.map(|error_correlation| Self { hessian, error_correlation })
    }

    /// W·D_v, what both questions about a linear start from. `weight`: W `[m, n]`, like the result.
    pub fn arriving(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Tensor> {
        self.error_correlation.left_product(rec, weight)
    }

    /// α* = clip(⟨W·D_v, Δ⟩ / ⟨Δ·H_v, Δ⟩, 0, 1), the minimiser of the held-out ‖WX − (W + αΔ)X̂‖²; 0 where Δ is 0.
    ///
    /// `arriving`: W·D_v; `correction`: Δ fitted on the other tokens, `[m, n]` both.
    pub async fn best_alpha(&self, rec: &mut Recorder, arriving: &Tensor, correction: &Tensor) -> Result<f64> {
        let curved = symmetric_product(rec, correction, &self.hessian)?;
        let (slope, curvature) = (dot(rec, arriving, correction)?, dot(rec, &curved, correction)?);
        let (slope, curvature) = (total(rec, &slope).await?, total(rec, &curvature).await?);
        Ok(if curvature > 0.0 { (slope / curvature).clamp(0.0, 1.0) } else { 0.0 })
    }

    /// ⟨E·H_v, E⟩ + 2⟨E, W·D_v⟩ with E = W − Q: the held-out ‖WX − QX̂‖² less ‖Wδ‖², which no choice of Q changes.
    ///
    /// `weight`: W, `arriving`: W·D_v, `rounded`: Q, `[m, n]` all three.
    pub async fn score(&self, rec: &mut Recorder, weight: &Tensor, arriving: &Tensor, rounded: &Tensor) -> Result<f64> {
        let mut error = rec.duplicate(weight)?;
        add_scaled(rec, &mut error, -1.0, rounded)?;
        let curved = symmetric_product(rec, &error, &self.hessian)?;
        let (own, crossed) = (dot(rec, &curved, &error)?, dot(rec, arriving, &error)?);
        Ok(total(rec, &own).await? + 2.0 * total(rec, &crossed).await?)
    }
}
