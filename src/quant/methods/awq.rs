//! AWQ (Lin et al., arXiv 2306.00978; algorithms.md §7): inputs that carry much are scaled up before rounding, so that they lose
//! less, and what produces these inputs is scaled down as much. Then the range of each group is shrunk to lower the output error.
//!
//! s are the scales. Q' is W·diag(s) rounded, and it is what is stored. Q = Q'·diag(1/s) is what it stands for. With E = W − Q the
//! output error is ⟨E·H, E⟩ = ‖E·X̂‖². So both searches need only H and mean|x̂| of the tokens.

use futures::future::{LocalBoxFuture, ready};

use super::{
    BaseQuantizer, GroupInput, GroupRounder, HessianForm, InputNeeds, Layer, LinearExtent, LinearWork, ScaleSearch,
};
use crate::device::{Recorder, Tensor};
use crate::error::{Setting, phrase};
use crate::ops::add::add_scaled;
use crate::ops::clip::{Best, Candidate};
use crate::ops::gram::{self, Packed};
use crate::ops::grid::{self, Grid, GridSpec, Search};
use crate::ops::grouped_product::grouped_product;
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::reduce::{dot, total};
use crate::ops::rtn;
use crate::ops::scale::scale_columns;
use crate::ops::snap::snap;
use crate::quant::statistics::Magnitudes;
use crate::quant::{Codes, QuantizeOptions, RoundedWeight};
use crate::{Error, Result};

/// Exponents that are tried: 0.00, 0.05, … 0.95.
const RATIOS: usize = 20;
/// Ranges that are tried, in percent: 100, 95, … 55.
const PERCENT: [usize; 10] = [100, 95, 90, 85, 80, 75, 70, 65, 60, 55];
/// The least (mean|x̂|)^r, as in the public implementation.
const LEAST: f32 = 1e-4;

/// AWQ.
#[derive(Debug)]
pub(super) struct Awq;

impl BaseQuantizer for Awq {
    fn needs(&self) -> InputNeeds {
        InputNeeds { hessian: Some(HessianForm::Dense), magnitudes: true }
    }

    fn scales_input(&self) -> bool {
        true
    }

    fn held_elements(&self, n: u64) -> u64 {
        n * n
    }

    fn linear_work(&self, _options: &QuantizeOptions, linear: LinearExtent) -> LinearWork {
        LinearWork { rounding: 20.0 * linear.weights() * linear.group_size, search: RATIOS as f64 * linear.product() }
    }

    fn prepare<'r, 'a: 'r>(
        &self,
        rec: &'r mut Recorder,
        input: GroupInput<'a>,
        search: ScaleSearch<'r>,
    ) -> LocalBoxFuture<'r, Result<Box<dyn GroupRounder + 'a>>> {
        Box::pin(async move { Ok(Box::new(AwqRounder::new(rec, input, search).await?) as Box<dyn GroupRounder>) })
    }
}

/// AWQ for the linears of one group.
#[derive(Debug)]
struct AwqRounder {
    activations: Activations,
    scales: InputScales,
    search: Search,
}

impl AwqRounder {
    /// With the scales that suit what is to be rounded best.
    async fn new(rec: &mut Recorder, input: GroupInput<'_>, search: ScaleSearch<'_>) -> Result<Self> {
        let curvature = input.curvature.ok_or_else(|| Error::shape("awq", "no Hessian"))?;
        let magnitudes = input.magnitudes.ok_or_else(|| Error::shape("awq", "statistics without magnitudes"))?;
        let activations = Activations::new(rec, curvature.hessian, magnitudes, curvature.place).await?;
        let scales = match search.feasible {
            Some(feasible) => activations.search(rec, search.weights, feasible, curvature.place).await?,
            None => InputScales::none(curvature.hessian.n()),
        };
        Ok(Self { activations, scales, search: input.options.grid })
    }
}

impl GroupRounder for AwqRounder {
    fn round<'r>(
        &'r self,
        rec: &'r mut Recorder,
        layer: Layer<'r>,
        weight: &'r Tensor,
    ) -> LocalBoxFuture<'r, Result<RoundedWeight>> {
        Box::pin(ready(self.activations.round(rec, weight, &self.scales.scales, (&layer.grid, self.search))))
    }

    fn input_scales(&self) -> Option<&InputScales> {
        Some(&self.scales)
    }
}

/// The scales of a group's input.
#[derive(Debug, Clone, PartialEq)]
pub struct InputScales {
    /// r, of s = (mean|x̂|)^r; `None` where nothing could be scaled.
    pub ratio: Option<f64>,
    /// s per input.
    pub scales: Vec<f32>,
}

impl InputScales {
    /// s = 1, for an input whose producer can take no scales.
    pub fn none(n: usize) -> Self {
        Self { ratio: None, scales: vec![1.0; n] }
    }
}

/// The scales that can be had, given those that are wanted: what is stored beside the codes is rounded, too.
pub type Feasible<'a> = &'a dyn Fn(&[f32]) -> Vec<f32>;

/// What AWQ knows of the input of a group.
#[derive(Debug)]
pub struct Activations {
    /// H, dense `[n, n]`.
    hessian: Tensor,
    /// mean|x̂| per input.
    magnitudes: Vec<f32>,
}

impl Activations {
    /// Unpacks H and reads mean|x̂|. `place` names the group in errors.
    ///
    /// Errors: `Error::NotFinite` if the activations overflow.
    pub async fn new(rec: &mut Recorder, hessian: &Packed, magnitudes: &Magnitudes, place: &str) -> Result<Self> {
        let magnitudes = magnitudes.mean(rec).await?;
        if magnitudes.iter().any(|value| !value.is_finite()) {
            return Err(not_finite(place, "the magnitudes of its input"));
        }
        Ok(Self { hessian: gram::unpack(rec, hessian)?, magnitudes })
    }

    /// s = (mean|x̂|)^r over √(max·min), and 1 for dead inputs.
    pub fn scales(&self, ratio: f64) -> Vec<f32> {
        let power = |m: &f32| f64::from(*m).powf(ratio).max(f64::from(LEAST));
        let live = || self.magnitudes.iter().filter(|m| **m > 0.0).map(power);
        let middle = (live().fold(0.0, f64::max) * live().fold(f64::INFINITY, f64::min)).sqrt();
        self.magnitudes.iter().map(|m| if *m > 0.0 { (power(m) / middle) as f32 } else { 1.0 }).collect()
    }

    /// Finds the scales with the least ⟨E·H, E⟩, summed over the linears, on min–max grids: 40·m·n² operations for each linear.
    ///
    /// `weights`: W or W* of each linear, `[m, n]`, and the grids that it is to have. `place` names the group in errors. The
    /// least r wins among equals.
    pub async fn search(
        &self,
        rec: &mut Recorder,
        weights: &[(&Tensor, GridSpec)],
        feasible: Feasible<'_>,
        place: &str,
    ) -> Result<InputScales> {
        let mut tried = Vec::new();
        for step in 0..RATIOS {
            let ratio = step as f64 / RATIOS as f64;
            let scales = feasible(&self.scales(ratio));
            let diagonal = Diagonal::new(rec, &scales)?;
            let mut losses = Vec::new();
            for (weight, spec) in weights {
                let scaled = diagonal.scaled(rec, weight)?;
                let grid = grid::search(rec, &scaled, None, spec, Search::MinMax)?;
                let error = diagonal.rounded(rec, &scaled, grid, *spec)?.error(rec, weight)?;
                let curved = matmul(rec, Orientation::Nn, &error, &self.hessian)?;
                losses.push(dot(rec, &curved, &error)?);
            }
            tried.push((InputScales { ratio: Some(ratio), scales }, losses));
        }
        // Losses are read after everything is submitted, so that a GPU never waits for the host.
        let mut best: Option<(f64, InputScales)> = None;
        for (scales, losses) in tried {
            let mut loss = 0.0;
            for partials in &losses {
                loss += total(rec, partials).await?;
            }
            if !loss.is_finite() {
                return Err(not_finite(place, "the error of a scaled and rounded weight"));
            }
            if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, scales));
            }
        }
        Ok(best.expect("there are ratios to try").1)
    }

    /// Rounds `weight` `[m, n]` with `scales`. Codes and grid are those of Q', and `dequantized` is Q.
    ///
    /// Unless `search` is min–max, each row and group gets the range with the least eᵀ·H_gg·e: 20·m·n·g operations, g the
    /// group size. The public implementation leaves the ranges of q and k as they are. With H over all tokens shrinking them
    /// pays, too.
    pub fn round(
        &self,
        rec: &mut Recorder,
        weight: &Tensor,
        scales: &[f32],
        (spec, search): (&GridSpec, Search),
    ) -> Result<RoundedWeight> {
        let diagonal = Diagonal::new(rec, scales)?;
        let scaled = diagonal.scaled(rec, weight)?;
        let mut chosen = grid::shrunk(rec, &scaled, spec, PERCENT[0])?;
        if search != Search::MinMax {
            let mut best = Best::new(rec, chosen, spec.group_size)?;
            for percent in PERCENT {
                let grid = grid::shrunk(rec, &scaled, spec, percent)?;
                let rounded = diagonal.rounded(rec, &scaled, grid, *spec)?;
                let error = rounded.error(rec, weight)?;
                let curved = grouped_product(rec, &error, &self.hessian, spec.group_size)?;
                best.offer(rec, Candidate { grid: &rounded.grid, error: &error, curved: &curved })?;
            }
            chosen = best.grid;
        }
        snap(rec, spec, &mut chosen)?;
        Ok(diagonal.rounded(rec, &scaled, chosen, *spec)?.into())
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

    /// Rounds W·diag(s) to `grid` and undoes the scales.
    fn rounded(&self, rec: &mut Recorder, scaled: &Tensor, grid: Grid, spec: GridSpec) -> Result<Attempt> {
        let (codes, mut dequantized) = rtn::round(rec, scaled, &grid, &spec)?;
        scale_columns(rec, &mut dequantized, &self.inverse)?;
        Ok(Attempt { spec, codes, grid, dequantized })
    }
}

/// A weight rounded in one of the ways that are compared.
struct Attempt {
    spec: GridSpec,
    codes: Tensor<u32>,
    grid: Grid,
    dequantized: Tensor,
}

impl From<Attempt> for RoundedWeight {
    fn from(Attempt { spec, codes, grid, dequantized }: Attempt) -> Self {
        Self { codes: Some(Codes { spec, codes, grid }), dequantized }
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
