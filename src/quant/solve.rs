//! From the statistics of a group's input to its quantized linears: correct, round, guard, refine (algorithms.md §3 to §7).
//!
//! [`GroupSolver`] corrects the weights and returns a [`GroupToRound`]. Rounding consumes that and returns [`RoundedLayer`]s. Each
//! step takes the value of the step before, so the order cannot be changed, and the caller can time each step.

use super::alpha::HeldOut;
use super::correction::GroupCorrection;
use super::methods::{Feasible, GroupInput, GroupRounder, InputScales, Layer, ScaleSearch};
use super::{Alpha, Curvature, HessianDiagonal, Quantities, QuantizeOptions, RoundedWeight, Statistics};
use crate::Result;
use crate::device::Recorder;
use crate::ops::add::add_scaled;
use crate::stored::StoredLinear;
use crate::tensor::Tensor;

/// A linear of the group.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Its name and its grids.
    pub layer: Layer<'a>,
    /// W, `[m, n]`.
    pub weight: &'a Tensor,
    /// α that was asked for.
    pub alpha: Alpha,
}

impl Linear<'_> {
    /// Whether α is found on held-out tokens.
    fn is_automatic(&self) -> bool {
        self.alpha == Alpha::Auto
    }
}

/// The statistics of the group's input.
#[derive(Debug)]
pub struct GroupStatistics {
    /// Over the tokens that corrections are fitted on.
    pub fitting: Statistics,
    /// Over the tokens that are held out; `None` if there are none.
    pub held_out: Option<Statistics>,
}

/// A quantized linear of the group.
#[derive(Debug)]
pub struct RoundedLayer {
    /// The layer as it is stored.
    pub stored: StoredLinear,
    /// The weight that the quantized stream goes through, `[m, n]`. After AWQ it fits the input before its scales.
    pub dequantized: Tensor,
    /// The scales of the input, the same for all linears of the group; `None` where the method scales no input.
    pub input_scales: Option<InputScales>,
    /// How strongly the weight was corrected.
    pub alpha: AppliedAlpha,
    /// ρ_r that was used; `None` where the method damps nothing.
    pub rounding_damping: Option<f64>,
}

/// The propagation strength of a linear: asked for, found and applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AppliedAlpha {
    /// What was asked for.
    pub requested: Alpha,
    /// α* before shrinkage, where it was determined.
    pub optimal: Option<f64>,
    /// The α that the stored layer was made with.
    pub applied: f64,
    /// Whether the guard kept the uncorrected result because the corrected one was worse on held-out tokens.
    pub guarded: bool,
    /// By how much the correction lowered the held-out score, before any refinement; `None` where this was not compared.
    pub score_gain: Option<f64>,
}

/// Quantizes one group of linears.
pub struct GroupSolver<'a> {
    /// The options of the run.
    pub options: &'a QuantizeOptions,
    /// Which scales the input can take; `None` where it can take none.
    pub feasible: Option<Feasible<'a>>,
    /// Name of the group in errors.
    pub place: &'a str,
}

impl GroupSolver<'_> {
    /// The quantities to accumulate over the calibration tokens for `linears`; `None` if the weights alone decide the result, so
    /// that no statistics are needed.
    pub fn quantities(&self, linears: &[Linear<'_>]) -> Option<Quantities> {
        let needs = self.options.method.quantizer().needs();
        let error_correlation = linears.iter().any(|linear| linear.alpha != Alpha::Off);
        let needed = error_correlation || needs.hessian.is_some();
        needed.then_some(Quantities { error_correlation, magnitudes: needs.magnitudes })
    }

    /// The group as it is, where [`GroupSolver::quantities`] says that it needs no statistics.
    pub fn uncorrected<'a>(&'a self, linears: &'a [Linear<'a>]) -> GroupToRound<'a> {
        let weights = linears.iter().map(|_| WeightToRound::default()).collect();
        GroupToRound { solver: self, linears, evidence: None, weights }
    }

    /// Corrects every linear that asks for it: α, Δ and W*.
    ///
    /// Errors: `Error::NotFinite` if the statistics overflow, `Error::Shape` if they are not of the needed quantities.
    pub async fn correct<'a>(
        &'a self,
        rec: &mut Recorder,
        linears: &'a [Linear<'a>],
        statistics: GroupStatistics,
    ) -> Result<GroupToRound<'a>> {
        let GroupStatistics { fitting: mut all, held_out } = statistics;
        let fitted = self.fitted_corrections(rec, linears, &all).await?;
        if let Some(held_out) = &held_out {
            all.merge(rec, held_out)?;
        }
        let automatic = linears.iter().any(Linear::is_automatic);
        let held_out = held_out.filter(|_| automatic).and_then(HeldOut::new);
        let group = self.correction(rec, &all).await?;
        let mut weights = Vec::new();
        for (linear, fitted) in linears.iter().zip(fitted) {
            weights.push(self.correct_linear(rec, linear, &group, held_out.as_ref(), fitted).await?);
        }
        let diagonal = group.into_diagonal();
        Ok(GroupToRound { solver: self, linears, evidence: Some(Evidence { all, diagonal, held_out }), weights })
    }

    /// Δ by the fitting tokens alone, for each linear whose α is found with it.
    async fn fitted_corrections(
        &self,
        rec: &mut Recorder,
        linears: &[Linear<'_>],
        fitting: &Statistics,
    ) -> Result<Vec<Option<Tensor>>> {
        if fitting.error_correlation.is_none() || !linears.iter().any(Linear::is_automatic) {
            return Ok(linears.iter().map(|_| None).collect());
        }
        let group = self.correction(rec, fitting).await?;
        let mut correction = |linear: &Linear<'_>| {
            let weight = group.without_dead(rec, linear.weight)?;
            group.correction(rec, &weight)
        };
        linears.iter().map(|linear| if linear.is_automatic() { correction(linear) } else { Ok(None) }).collect()
    }

    /// W* of one linear. `group`: by all tokens; `fitted`: Δ by the fitting tokens alone.
    async fn correct_linear(
        &self,
        rec: &mut Recorder,
        linear: &Linear<'_>,
        group: &GroupCorrection<'_>,
        held_out: Option<&HeldOut>,
        fitted: Option<Tensor>,
    ) -> Result<WeightToRound> {
        let plain = group.without_dead(rec, linear.weight)?;
        let output_correlation = match held_out {
            Some(held_out) if linear.is_automatic() => Some(held_out.output_correlation(rec, linear.weight)?),
            _ => None,
        };
        let measure = held_out.zip(output_correlation.as_ref()).zip(fitted);
        let (alpha, optimal) = match (linear.alpha, measure) {
            (Alpha::Fixed(alpha), _) => (alpha, None),
            (Alpha::Auto, Some(((held_out, output_correlation), correction))) => {
                let optimal = held_out.best_alpha(rec, output_correlation, &correction).await?;
                (self.options.alpha.shrinkage * optimal, Some(optimal))
            }
            (Alpha::Off, _) | (Alpha::Auto, None) => (0.0, None),
        };
        let correction = if alpha > 0.0 { group.correction(rec, &plain)? } else { None };
        let Some(correction) = correction else {
            // A method that needs no H knows of no dead inputs either, and rounds W itself.
            let plain = Some(plain).filter(|_| self.options.method.quantizer().needs().hessian.is_some());
            return Ok(WeightToRound { plain, corrected: None, optimal });
        };
        let mut weight = rec.duplicate(&plain)?;
        add_scaled(rec, &mut weight, alpha as f32, &correction)?;
        Ok(WeightToRound {
            plain: Some(plain),
            corrected: Some(CorrectedWeight { weight, alpha, output_correlation }),
            optimal,
        })
    }

    async fn correction<'s>(&self, rec: &mut Recorder, statistics: &'s Statistics) -> Result<GroupCorrection<'s>> {
        GroupCorrection::new(rec, statistics, self.options.correction_damping, self.place).await
    }

    /// The base quantizer, prepared for the group.
    async fn rounder<'e>(
        &'e self,
        rec: &mut Recorder,
        linears: &[Linear<'_>],
        evidence: Option<&'e Evidence>,
        weights: &[WeightToRound],
    ) -> Result<Box<dyn GroupRounder + 'e>> {
        let curvature = evidence.map(|Evidence { all, diagonal, .. }| Curvature {
            hessian: &all.hessian,
            diagonal,
            place: self.place,
        });
        let magnitudes = evidence.and_then(|evidence| evidence.all.magnitudes.as_ref());
        let input = GroupInput { options: self.options, curvature, magnitudes };
        let targets: Vec<_> = linears
            .iter()
            .zip(weights)
            .map(|(linear, weight)| (weight.target(linear.weight), linear.layer.grid))
            .collect();
        let search = ScaleSearch { weights: &targets, feasible: self.feasible };
        self.options.method.quantizer().prepare(rec, input, search).await
    }
}

/// A group whose weights are ready to be rounded.
pub struct GroupToRound<'a> {
    solver: &'a GroupSolver<'a>,
    linears: &'a [Linear<'a>],
    /// `None` where the weights alone decide the result.
    evidence: Option<Evidence>,
    /// One for each linear.
    weights: Vec<WeightToRound>,
}

/// What the tokens say about a group.
struct Evidence {
    /// Over all tokens.
    all: Statistics,
    /// The diagonal of H over all tokens.
    diagonal: HessianDiagonal,
    /// Where α is automatic for a linear.
    held_out: Option<HeldOut>,
}

/// The weight of a linear before it is rounded.
#[derive(Default)]
struct WeightToRound {
    /// W without the columns of dead inputs; `None` where W itself is rounded.
    plain: Option<Tensor>,
    /// `None` where the linear is not corrected.
    corrected: Option<CorrectedWeight>,
    /// α* before shrinkage, where it was determined.
    optimal: Option<f64>,
}

impl WeightToRound {
    /// The weight to round: W* where there is one, else W. `original`: W.
    fn target<'t>(&'t self, original: &'t Tensor) -> &'t Tensor {
        let corrected = self.corrected.as_ref().map(|corrected| &corrected.weight);
        corrected.or(self.plain.as_ref()).unwrap_or(original)
    }
}

/// W* of a linear.
struct CorrectedWeight {
    /// W*, `[m, n]`.
    weight: Tensor,
    alpha: f64,
    /// W·D over the held-out tokens, where α is automatic and there are any.
    output_correlation: Option<Tensor>,
}

impl GroupToRound<'_> {
    /// Rounds every linear, with the guard where α is automatic, and refines the result.
    ///
    /// Errors: `Error::NotFinite` if a factorisation fails or a scale overflows.
    pub async fn round(self, rec: &mut Recorder) -> Result<Vec<RoundedLayer>> {
        let Self { solver, linears, evidence, weights } = self;
        let rounder = solver.rounder(rec, linears, evidence.as_ref(), &weights).await?;
        let rounder = rounder.as_ref();
        let held_out = evidence.as_ref().and_then(|evidence| evidence.held_out.as_ref());
        let mut layers = Vec::new();
        for (linear, weight) in linears.iter().zip(weights) {
            let GuardedRounding { rounded, target, alpha } =
                round_guarded(rec, rounder, linear, weight, held_out).await?;
            let refined = rounder.refine(rec, target.as_ref().unwrap_or(linear.weight), rounded)?;
            layers.push(RoundedLayer {
                stored: refined.store(rec, linear.layer.name).await?,
                dequantized: refined.dequantized,
                input_scales: rounder.input_scales().cloned(),
                alpha,
                rounding_damping: rounder.damping(),
            });
        }
        Ok(layers)
    }
}

/// The rounding that the guard chose.
struct GuardedRounding {
    rounded: RoundedWeight,
    /// The weight that was rounded; `None` if it is W itself.
    target: Option<Tensor>,
    alpha: AppliedAlpha,
}

/// Rounds W*, or W where there is no W*. Where α is automatic, W is rounded, too, and the result with the lower score on held-out
/// tokens is kept.
async fn round_guarded(
    rec: &mut Recorder,
    rounder: &dyn GroupRounder,
    linear: &Linear<'_>,
    weight: WeightToRound,
    held_out: Option<&HeldOut>,
) -> Result<GuardedRounding> {
    let WeightToRound { plain, corrected, optimal } = weight;
    let (layer, original) = (linear.layer, linear.weight);
    let uncorrected = AppliedAlpha { requested: linear.alpha, optimal, applied: 0.0, guarded: false, score_gain: None };
    let Some(CorrectedWeight { weight: target, alpha, output_correlation }) = corrected else {
        let rounded = rounder.round(rec, layer, plain.as_ref().unwrap_or(original)).await?;
        return Ok(GuardedRounding { rounded, target: plain, alpha: uncorrected });
    };
    let corrected = AppliedAlpha { applied: alpha, ..uncorrected };
    let rounded = rounder.round(rec, layer, &target).await?;
    let Some((held_out, output_correlation)) = held_out.zip(output_correlation) else {
        return Ok(GuardedRounding { rounded, target: Some(target), alpha: corrected });
    };
    let other = rounder.round(rec, layer, plain.as_ref().unwrap_or(original)).await?;
    let before = held_out.score(rec, original, &output_correlation, &other.dequantized).await?;
    let gain = before - held_out.score(rec, original, &output_correlation, &rounded.dequantized).await?;
    if gain < 0.0 {
        let alpha = AppliedAlpha { guarded: true, score_gain: Some(0.0), ..uncorrected };
        return Ok(GuardedRounding { rounded: other, target: plain, alpha });
    }
    let alpha = AppliedAlpha { score_gain: Some(gain), ..corrected };
    Ok(GuardedRounding { rounded, target: Some(target), alpha })
}
