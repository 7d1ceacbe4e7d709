//! AWQ (Lin et al., arXiv 2306.00978; algorithms.md §7): inputs that carry much are scaled up before rounding, so that they lose
//! less, and whatever makes these inputs is scaled down by as much. Then each group's range is shrunk to what serves the output.
//!
//! With s the scales, Q' is W·diag(s) rounded: what is stored. Q = Q'·diag(1/s) is what it stands for. H and mean|x̂| are all
//! that either search needs of the tokens, since the output is off by ⟨E·H, E⟩ = ‖E·X̂‖², E = W − Q.

use super::{Codes, Rounded, Statistics};
use crate::device::Recorder;
use crate::error::{Setting, phrase};
use crate::ops::add::add_scaled;
use crate::ops::clip::{Best, Candidate};
use crate::ops::gram;
use crate::ops::grid::{self, Grid, GridSpec, Search};
use crate::ops::grouped_product::grouped_product;
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::reduce::{dot, total};
use crate::ops::rtn;
use crate::ops::scale::scale_columns;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Exponents that are tried: 0.00, 0.05, … 0.95.
pub(crate) const RATIOS: usize = 20;
/// Ranges that are tried, in percent: 100, 95, … 55.
const PERCENT: [usize; 10] = [100, 95, 90, 85, 80, 75, 70, 65, 60, 55];
/// Least (mean|x̂|)^r, as in the public implementation.
const LEAST: f32 = 1e-4;

/// What AWQ knows about the input of a group of linears.
#[derive(Debug)]
pub struct Activations {
    /// H, dense `[n, n]`.
    hessian: Tensor,
    /// mean|x̂| per input.
    magnitudes: Vec<f32>,
}

/// The scales that a group of linears was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    /// r, of s = (mean|x̂|)^r; `None` where nothing could be scaled.
    pub ratio: Option<f64>,
    /// s per input.
    pub scales: Vec<f32>,
}

impl Scaling {
    /// s = 1: the input's maker can take no scales.
    pub fn none(n: usize) -> Self {
        Self { ratio: None, scales: vec![1.0; n] }
    }
}

/// Which scales can be had, given those that are wanted: what is stored beside the codes is rounded too.
pub type Feasible<'a> = &'a dyn Fn(&[f32]) -> Vec<f32>;

impl Activations {
    /// From statistics with magnitudes. `place` names the group in errors.
    ///
    /// Errors: `Error::NotFinite` if the activations overflow, `Error::Shape` for statistics without magnitudes.
    pub async fn of(rec: &mut Recorder, statistics: &Statistics, place: &str) -> Result<Self> {
        let magnitudes = statistics.magnitudes.as_ref();
        let magnitudes = magnitudes.ok_or_else(|| Error::shape("awq", "statistics without magnitudes"))?;
        let magnitudes = magnitudes.mean(rec).await?;
        if magnitudes.iter().any(|value| !value.is_finite()) {
            return Err(not_finite(place, "the magnitudes of its input"));
        }
        Ok(Self { hessian: gram::unpack(rec, &statistics.hessian)?, magnitudes })
    }

    /// s = (mean|x̂|)^r over √(max·min); 1 where no token ever excited the input.
    pub fn scales(&self, ratio: f64) -> Vec<f32> {
        let power = |m: &f32| f64::from(*m).powf(ratio).max(f64::from(LEAST));
        let live = || self.magnitudes.iter().filter(|m| **m > 0.0).map(power);
        let middle = (live().fold(0.0, f64::max) * live().fold(f64::INFINITY, f64::min)).sqrt();
        self.magnitudes.iter().map(|m| if *m > 0.0 { (power(m) / middle) as f32 } else { 1.0 }).collect()
    }

    /// The scales with the least ⟨E·H, E⟩ summed over the linears, of plain ranges: 40·m·n² operations for each.
    ///
    /// `weights`: W or W* of each linear, `[m, n]`, and the grids it is to have. `place` names the group in errors. Of equals
    /// the least r wins.
    pub async fn search(
        &self,
        rec: &mut Recorder,
        weights: &[(&Tensor, GridSpec)],
        feasible: Feasible<'_>,
        place: &str,
    ) -> Result<Scaling> {
        let mut tried = Vec::new();
        for step in 0..RATIOS {
            let ratio = step as f64 / RATIOS as f64;
            let scales = feasible(&self.scales(ratio));
            let diagonal = Diagonal::new(rec, &scales)?;
            let mut losses = Vec::new();
            for (weight, spec) in weights {
                let spec = GridSpec { search: Search::MinMax, ..*spec };
                let scaled = diagonal.scaled(rec, weight)?;
                let grid = grid::search(rec, &scaled, None, &spec)?;
                let error = diagonal.rounded(rec, &scaled, grid, &spec)?.error(rec, weight)?;
                let curved = matmul(rec, Orientation::Nn, &error, &self.hessian)?;
                losses.push(dot(rec, &curved, &error)?);
            }
            tried.push((Scaling { ratio: Some(ratio), scales }, losses));
        }
        // Read when everything is on its way, so that a GPU never waits for the host.
        let mut best: Option<(f64, Scaling)> = None;
        for (scaling, losses) in tried {
            let mut loss = 0.0;
            for partials in &losses {
                loss += total(rec, partials).await?;
            }
            if !loss.is_finite() {
                return Err(not_finite(place, "the error of a scaled and rounded weight"));
            }
            if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, scaling));
            }
        }
        Ok(best.expect("there are ratios to try").1)
    }

    /// Rounds `weight` `[m, n]` with `scales`. Codes and grid are of Q', `dequantized` is Q.
    ///
    /// Unless `spec.search` is min–max, each row and group gets the range with the least eᵀ·H_gg·e: 20·m·n·g operations, g the
    /// group size. Unlike the public implementation this also shrinks ranges of q and k: with H over all tokens it pays
    /// there too.
    pub fn round(&self, rec: &mut Recorder, weight: &Tensor, scales: &[f32], spec: &GridSpec) -> Result<Rounded> {
        let diagonal = Diagonal::new(rec, scales)?;
        let scaled = diagonal.scaled(rec, weight)?;
        let whole = grid::shrunk(rec, &scaled, spec, PERCENT[0])?;
        if spec.search == Search::MinMax {
            return Ok(diagonal.rounded(rec, &scaled, whole, spec)?.into());
        }
        let mut best = Best::new(rec, whole, spec.group_size)?;
        for percent in PERCENT {
            let grid = grid::shrunk(rec, &scaled, spec, percent)?;
            let rounded = diagonal.rounded(rec, &scaled, grid, spec)?;
            let error = rounded.error(rec, weight)?;
            let curved = grouped_product(rec, &error, &self.hessian, spec.group_size)?;
            best.offer(rec, Candidate { grid: &rounded.grid, error: &error, curved: &curved })?;
        }
        Ok(diagonal.rounded(rec, &scaled, best.grid, spec)?.into())
    }
}

/// diag(s) and its inverse.
struct Diagonal {
    scales: Tensor,
    inverse: Tensor,
}

impl Diagonal {
    fn new(rec: &mut Recorder, scales: &[f32]) -> Result<Self> {
        let inverse = scales.iter().map(|s| 1.0 / s).collect();
        Ok(Self {
            scales: rec.upload(&[scales.len()], scales.to_vec())?,
            inverse: rec.upload(&[scales.len()], inverse)?,
        })
    }

    /// W·diag(s).
    fn scaled(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Tensor> {
        let mut scaled = rec.duplicate(weight)?;
        scale_columns(rec, &mut scaled, &self.scales)?;
        Ok(scaled)
    }

    /// W·diag(s) on `grid`, and back.
    fn rounded(&self, rec: &mut Recorder, scaled: &Tensor, grid: Grid, spec: &GridSpec) -> Result<Attempt> {
        let (codes, mut dequantized) = rtn::round(rec, scaled, &grid, spec.group_size, spec.bits)?;
        scale_columns(rec, &mut dequantized, &self.inverse)?;
        Ok(Attempt { bits: spec.bits, codes, grid, dequantized })
    }
}

/// A weight rounded in one of the ways that are compared.
struct Attempt {
    bits: u32,
    codes: Tensor<u32>,
    grid: Grid,
    dequantized: Tensor,
}

impl From<Attempt> for Rounded {
    fn from(Attempt { bits, codes, grid, dequantized }: Attempt) -> Self {
        Self { codes: Some(Codes { bits, codes, grid }), dequantized }
    }
}

impl Attempt {
    /// E = W − Q.
    fn error(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Tensor> {
        let mut error = rec.duplicate(weight)?;
        add_scaled(rec, &mut error, -1.0, &self.dequantized)?;
        Ok(error)
    }
}

fn not_finite(place: &str, what: &str) -> Error {
    Error::NotFinite {
        place: format!("{place}: {what}"),
        remedy: phrase!["check the weights and the calibration text, or use another ", Setting::Method],
    }
}
