//! One group of linears: from the statistics of its input to codes (algorithms.md §3 to §6).

use crate::Result;
use crate::device::Recorder;
use crate::ops::add::add_scaled;
use crate::ops::gram::Packed;
use crate::ops::grid::GridSpec;
use crate::ops::scale::scale_columns;
use crate::quant::alpha::HeldOut;
use crate::quant::awq::Feasible;
use crate::quant::correction::Corrector;
use crate::quant::rounding::spec;
use crate::quant::{
    Activations, Alpha, Curvature, Damping, Layer, Method, QuantizeOptions, Rounded, Rounder, Scaling, Statistics,
};
use crate::record::LayerReport;
use crate::stored::StoredLinear;
use crate::tensor::Tensor;

/// A linear of the group.
#[derive(Debug)]
pub(super) struct Linear<'a> {
    /// Module path.
    pub name: &'a str,
    /// W, `[m, n]`.
    pub weight: &'a Tensor,
    /// α that was asked for.
    pub alpha: Alpha,
    /// Bits per code.
    pub bits: u32,
}

impl Linear<'_> {
    fn layer(&self) -> Layer<'_> {
        Layer { name: self.name, bits: self.bits }
    }
}

/// H and D of the group's input, over the tokens to fit on and over those held out.
#[derive(Debug)]
pub(super) struct Gathered {
    pub fitting: Statistics,
    pub held_out: Option<Statistics>,
}

/// A quantized linear of the group.
#[derive(Debug)]
pub(super) struct Outcome {
    pub stored: StoredLinear,
    /// What the layer computes with from now on, `[m, n]`; after AWQ it fits the input as it is, before its scales.
    pub dequantized: Tensor,
    /// AWQ's scales of the input, the same for all linears of the group.
    pub input_scales: Option<Vec<f32>>,
    pub report: LayerReport,
    /// Held-out score without correction less that with it, where both are known; both before any refinement.
    pub score_gain: Option<f64>,
}

/// What all linears of the group share once the correction is done.
#[derive(Debug)]
pub(super) struct Prepared {
    all: Statistics,
    diagonal: Damping,
    held_out: Option<HeldOut>,
}

/// What is known about a linear before it is rounded.
#[derive(Debug)]
pub(super) struct Candidate {
    /// W without dead inputs.
    weight: Tensor,
    corrected: Option<Corrected>,
    optimal: Option<f64>,
}

impl Candidate {
    /// W* where there is one, else W.
    fn target(&self) -> &Tensor {
        self.corrected.as_ref().map_or(&self.weight, |corrected| &corrected.weight)
    }
}

/// A linear's correction.
#[derive(Debug)]
struct Corrected {
    /// W*.
    weight: Tensor,
    alpha: f64,
    /// W·D over the held-out tokens, where there are any.
    arriving: Option<Tensor>,
}

/// Corrects a group's linears and rounds them.
pub(super) struct GroupQuantizer<'a> {
    pub options: &'a QuantizeOptions,
    pub group_size: Option<usize>,
    /// Which scales of its input AWQ can have; `None` where it can have none.
    pub feasible: Option<Feasible<'a>>,
    /// The group, for errors.
    pub place: &'a str,
}

impl GroupQuantizer<'_> {
    /// Without statistics: RTN of W, no correction.
    pub async fn round_plain(&self, rec: &mut Recorder, linears: &[Linear<'_>]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for linear in linears {
            let rounder = Rounder::rtn(self.options, self.group_size, linear.weight.shape()[1]);
            let rounded = rounder.round(rec, linear.layer(), linear.weight).await?;
            outcomes.push(self.outcome(rec, linear, &rounder, rounded, None).await?);
        }
        Ok(outcomes)
    }

    /// Corrects every linear that asks for it. Returns what `round` needs.
    pub async fn correct(
        &self,
        rec: &mut Recorder,
        linears: &[Linear<'_>],
        gathered: Gathered,
    ) -> Result<(Prepared, Vec<Candidate>)> {
        let Gathered { fitting: mut all, held_out } = gathered;
        let fitted_corrections = self.fitted_corrections(rec, linears, &all).await?;
        if let Some(held_out) = &held_out {
            all.merge(rec, held_out)?;
        }
        let automatic = linears.iter().any(|linear| linear.alpha == Alpha::Auto);
        let held_out = held_out.filter(|_| automatic).and_then(HeldOut::new);
        let diagonal = Damping::of(rec, &all.hessian, self.place).await?;
        let corrector = match all.error_correlation {
            Some(_) => Some(self.corrector(rec, &all.hessian, &diagonal).await?),
            None => None,
        };
        let alive = rec.upload(&[all.hessian.n()], diagonal.alive())?;
        let mut candidates = Vec::new();
        for (linear, fitted) in linears.iter().zip(fitted_corrections) {
            let weight = without_dead(rec, linear.weight, &alive)?;
            let arriving = match &held_out {
                Some(held_out) if linear.alpha == Alpha::Auto => Some(held_out.arriving(rec, linear.weight)?),
                _ => None,
            };
            let measure = held_out.as_ref().zip(arriving.as_ref());
            let (alpha, optimal) = self.alpha(rec, linear.alpha, measure, fitted).await?;
            let corrected = match (&corrector, &all.error_correlation) {
                (Some(corrector), Some(d)) if alpha > 0.0 => {
                    let correction = corrector.correction(rec, &weight, d)?;
                    let mut corrected = rec.duplicate(&weight)?;
                    add_scaled(rec, &mut corrected, alpha as f32, &correction)?;
                    Some(Corrected { weight: corrected, alpha, arriving })
                }
                _ => None,
            };
            candidates.push(Candidate { weight, corrected, optimal });
        }
        Ok((Prepared { all, diagonal, held_out }, candidates))
    }

    /// Δ on the fitting tokens alone, for each linear whose α is to be found with it.
    async fn fitted_corrections(
        &self,
        rec: &mut Recorder,
        linears: &[Linear<'_>],
        fitting: &Statistics,
    ) -> Result<Vec<Option<Tensor>>> {
        let wanted = |linear: &Linear<'_>| linear.alpha == Alpha::Auto;
        let Some(d) = fitting.error_correlation.as_ref().filter(|_| linears.iter().any(wanted)) else {
            return Ok(linears.iter().map(|_| None).collect());
        };
        let diagonal = Damping::of(rec, &fitting.hessian, self.place).await?;
        let corrector = self.corrector(rec, &fitting.hessian, &diagonal).await?;
        let alive = rec.upload(&[fitting.hessian.n()], diagonal.alive())?;
        let mut correction = |linear: &Linear<'_>| {
            let weight = without_dead(rec, linear.weight, &alive)?;
            corrector.correction(rec, &weight, d)
        };
        linears.iter().map(|linear| wanted(linear).then(|| correction(linear)).transpose()).collect()
    }

    /// The α to apply, and α* where it was asked for. `measure`: what was held out, with W·D over it.
    async fn alpha(
        &self,
        rec: &mut Recorder,
        wanted: Alpha,
        measure: Option<(&HeldOut, &Tensor)>,
        fitted: Option<Tensor>,
    ) -> Result<(f64, Option<f64>)> {
        Ok(match (wanted, measure, fitted) {
            (Alpha::Off, ..) => (0.0, None),
            (Alpha::Fixed(alpha), ..) => (alpha, None),
            (Alpha::Auto, Some((held_out, arriving)), Some(correction)) => {
                let optimal = held_out.best_alpha(rec, arriving, &correction).await?;
                (self.options.alpha.shrinkage * optimal, Some(optimal))
            }
            (Alpha::Auto, ..) => (0.0, None),
        })
    }

    /// Rounds every candidate, with the guard where α was automatic, and refines what is taken.
    pub async fn round(
        &self,
        rec: &mut Recorder,
        linears: &[Linear<'_>],
        prepared: &Prepared,
        candidates: Vec<Candidate>,
    ) -> Result<Vec<Outcome>> {
        let Prepared { all, diagonal, held_out } = prepared;
        let curvature = Curvature { hessian: &all.hessian, diagonal, place: self.place };
        let rounder = match self.options.method {
            Method::Awq => self.awq(rec, all, linears, &candidates).await?,
            _ => Rounder::new(rec, self.options, self.group_size, curvature).await?,
        };
        let mut outcomes = Vec::new();
        for (linear, candidate) in linears.iter().zip(candidates) {
            let optimal = candidate.optimal;
            let Chosen { rounded, target, alpha, gain, guarded } =
                choose(rec, &rounder, linear, candidate, held_out.as_ref()).await?;
            let refined = rounder.refine(rec, &target, rounded)?;
            let mut outcome = self.outcome(rec, linear, &rounder, refined, gain).await?;
            outcome.report.alpha = alpha;
            outcome.report.alpha_optimal = optimal;
            outcome.report.guarded = guarded;
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// AWQ with scales that suit what is to be rounded: the corrected weights where there are any.
    async fn awq(
        &self,
        rec: &mut Recorder,
        all: &Statistics,
        linears: &[Linear<'_>],
        candidates: &[Candidate],
    ) -> Result<Rounder<'_>> {
        let n = all.hessian.n();
        let activations = Activations::of(rec, all, self.place).await?;
        let grids = linears.iter().map(|linear| spec(self.options, self.group_size.unwrap_or(n), linear.bits));
        let weights: Vec<(&Tensor, GridSpec)> = candidates.iter().map(Candidate::target).zip(grids).collect();
        let scaling = match self.feasible {
            Some(feasible) => activations.search(rec, &weights, feasible, self.place).await?,
            None => Scaling::none(n),
        };
        Ok(Rounder::awq(self.options, self.group_size, activations, scaling))
    }

    async fn outcome(
        &self,
        rec: &mut Recorder,
        linear: &Linear<'_>,
        rounder: &Rounder<'_>,
        rounded: Rounded,
        score_gain: Option<f64>,
    ) -> Result<Outcome> {
        let report = LayerReport {
            name: linear.name.to_string(),
            alpha_requested: linear.alpha,
            alpha_optimal: None,
            alpha: 0.0,
            guarded: false,
            correction_damping: self.options.correction_damping,
            rounding_damping: rounder.damping(),
            awq_ratio: rounder.scaling().and_then(|scaling| scaling.ratio),
            error_fitted: 0.0,
            error_held_out: None,
            error_held_out_uncorrected: None,
        };
        let stored = rounder.store(rec, linear.name, &rounded).await?;
        let input_scales = rounder.scaling().map(|scaling| scaling.scales.clone());
        Ok(Outcome { stored, dequantized: rounded.dequantized, input_scales, report, score_gain })
    }

    async fn corrector(&self, rec: &mut Recorder, hessian: &Packed, diagonal: &Damping) -> Result<Corrector> {
        Corrector::new(rec, hessian, diagonal, self.options.correction_damping, self.place).await
    }
}

/// What became of a candidate.
struct Chosen {
    rounded: Rounded,
    /// What was rounded.
    target: Tensor,
    alpha: f64,
    /// By how much the correction lowered the score on held-out tokens.
    gain: Option<f64>,
    guarded: bool,
}

/// Rounds the corrected weights, or W where there are none. Where α was automatic W is rounded, too, and taken if it is the better of
/// the two on held-out tokens.
async fn choose(
    rec: &mut Recorder,
    rounder: &Rounder<'_>,
    linear: &Linear<'_>,
    candidate: Candidate,
    held_out: Option<&HeldOut>,
) -> Result<Chosen> {
    let Candidate { weight, corrected, .. } = candidate;
    let Some(Corrected { weight: target, alpha, arriving }) = corrected else {
        // Plain RTN needs no data, so it knows of no dead inputs either.
        let plain = if rounder.needs_data() { &weight } else { linear.weight };
        let rounded = rounder.round(rec, linear.layer(), plain).await?;
        return Ok(Chosen { rounded, target: weight, alpha: 0.0, gain: None, guarded: false });
    };
    let rounded = rounder.round(rec, linear.layer(), &target).await?;
    let Some((held_out, arriving)) = held_out.zip(arriving) else {
        return Ok(Chosen { rounded, target, alpha, gain: None, guarded: false });
    };
    let plain = rounder.round(rec, linear.layer(), &weight).await?;
    let before = held_out.score(rec, linear.weight, &arriving, &plain.dequantized).await?;
    let gain = before - held_out.score(rec, linear.weight, &arriving, &rounded.dequantized).await?;
    if gain < 0.0 {
        return Ok(Chosen { rounded: plain, target: weight, alpha: 0.0, gain: Some(0.0), guarded: true });
    }
    Ok(Chosen { rounded, target, alpha, gain: Some(gain), guarded: false })
}

/// W with the columns of dead inputs set to zero: what is corrected, and what GPTQ rounds.
fn without_dead(rec: &mut Recorder, weight: &Tensor, alive: &Tensor) -> Result<Tensor> {
    let mut weight = rec.duplicate(weight)?;
    scale_columns(rec, &mut weight, alive)?;
    Ok(weight)
}
