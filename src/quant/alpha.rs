//! The propagation strength α* that is best on held-out tokens, and the score by which the guard compares roundings
//! (algorithms.md §3).

use crate::Result;
use crate::device::Recorder;
use crate::ops::add::add_scaled;
use crate::ops::gram::Packed;
use crate::ops::pieces::{Pieces, symmetric_product};
use crate::ops::reduce::{dot, total};
use crate::quant::Statistics;
use crate::tensor::Tensor;

/// H_v and D_v, over the tokens that no correction was fitted on.
#[derive(Debug)]
pub struct HeldOut {
    hessian: Packed,
    error_correlation: Pieces,
}

impl HeldOut {
    /// Takes H and D out of `statistics`; `None` if there is no D.
    pub fn new(statistics: Statistics) -> Option<Self> {
        let hessian = statistics.hessian;
        statistics.error_correlation.map(|error_correlation| Self { hessian, error_correlation })
    }

    /// W·D_v = (Wδ)X̂ᵀ, the correlation of the error at the output with the input. `weight`: W `[m, n]`, like the result.
    pub fn output_correlation(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Tensor> {
        self.error_correlation.left_product(rec, weight)
    }

    /// α* = clip(⟨W·D_v, Δ⟩ / ⟨Δ·H_v, Δ⟩, 0, 1), the minimiser of the held-out ‖WX − (W + αΔ)X̂‖²; 0 where Δ is 0.
    ///
    /// `output_correlation`: W·D_v; `correction`: Δ fitted on the other tokens; `[m, n]` both.
    pub async fn best_alpha(
        &self,
        rec: &mut Recorder,
        output_correlation: &Tensor,
        correction: &Tensor,
    ) -> Result<f64> {
        let curved = symmetric_product(rec, correction, &self.hessian)?;
        let (slope, curvature) = (dot(rec, output_correlation, correction)?, dot(rec, &curved, correction)?);
        let (slope, curvature) = (total(rec, &slope).await?, total(rec, &curvature).await?);
        Ok(if curvature > 0.0 { (slope / curvature).clamp(0.0, 1.0) } else { 0.0 })
    }

    /// ⟨E·H_v, E⟩ + 2⟨E, W·D_v⟩ with E = W − Q. This is the held-out ‖WX − QX̂‖² without ‖Wδ‖², which does not depend on Q.
    ///
    /// `weight`: W; `output_correlation`: W·D_v; `rounded`: Q; `[m, n]` all three.
    pub async fn score(
        &self,
        rec: &mut Recorder,
        weight: &Tensor,
        output_correlation: &Tensor,
        rounded: &Tensor,
    ) -> Result<f64> {
        let mut error = rec.duplicate(weight)?;
        add_scaled(rec, &mut error, -1.0, rounded)?;
        let curved = symmetric_product(rec, &error, &self.hessian)?;
        let (own, crossed) = (dot(rec, &curved, &error)?, dot(rec, output_correlation, &error)?);
        Ok(total(rec, &own).await? + 2.0 * total(rec, &crossed).await?)
    }
}
