//! From a weight to a rounded one, by the base quantizer that was asked for: RTN, GPTQ, AWQ or QuIP.

use half::f16;

use super::descent::Descent;
use super::gptq::{self, Groups};
use super::{ActivationOrder, Activations, Damping, Method, QuantizeOptions, Scaling, quip};
use crate::device::Recorder;
use crate::error::{Setting, phrase};
use crate::ops::cholesky::{self, Factor};
use crate::ops::dequantize::dequantize;
use crate::ops::gram::Packed;
use crate::ops::grid::{self, Grid, GridSpec, Search, Symmetry};
use crate::ops::rtn;
use crate::stored::{DenseLinear, QuantizedLinear, StoredLinear};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A rounded weight.
#[derive(Debug)]
pub struct Rounded {
    /// Codes and their grid; `None` where the result lies on no grid.
    pub codes: Option<Codes>,
    /// What stands in for the weight from now on, `[m, n]`.
    pub dequantized: Tensor,
}

/// A weight as s·(q − z).
#[derive(Debug)]
pub struct Codes {
    /// Bits of a code.
    pub bits: u32,
    /// q, `[m, n]`. After AWQ, codes and grid are of W·diag(s).
    pub codes: Tensor<u32>,
    /// s and z, `[m, groups]` each.
    pub grid: Grid,
}

/// A layer to be rounded.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Module path.
    pub name: &'a str,
    /// Bits per code.
    pub bits: u32,
}

/// The base quantizer, ready for all linears of a group.
#[derive(Debug)]
pub struct Rounder<'a> {
    options: &'a QuantizeOptions,
    /// Inputs per grid.
    group_size: usize,
    plan: Plan<'a>,
}

/// What a method has prepared for all linears of a group.
#[derive(Debug)]
enum Plan<'a> {
    Rtn,
    Gptq(Box<GptqPlan<'a>>),
    Awq(Activations, Scaling),
    Quip(quip::Plan),
}

#[derive(Debug)]
struct GptqPlan<'a> {
    columns: gptq::Plan,
    damping: f64,
    descent: Option<Descent<'a>>,
}

/// ρ_r is multiplied by ten until the factorisation succeeds, but not beyond this.
const MAX_DAMPING: f64 = 1e6;

/// The undamped H of a group and what follows from its diagonal; `place` names the group in errors.
#[derive(Debug, Clone, Copy)]
pub struct Curvature<'a> {
    /// H.
    pub hessian: &'a Packed,
    /// Of `hessian`.
    pub diagonal: &'a Damping,
    /// The group.
    pub place: &'a str,
}

impl<'a> Rounder<'a> {
    /// RTN: needs no data. `group_size`: `None` for per channel; `n`: inputs of the group.
    pub fn rtn(options: &'a QuantizeOptions, group_size: Option<usize>, n: usize) -> Self {
        Self { options, group_size: group_size.unwrap_or(n), plan: Plan::Rtn }
    }

    /// The method of `options`, for the group of which `curvature` speaks.
    pub async fn new(
        rec: &mut Recorder,
        options: &'a QuantizeOptions,
        group_size: Option<usize>,
        curvature: Curvature<'a>,
    ) -> Result<Self> {
        let group_size = group_size.unwrap_or(curvature.hessian.n());
        let plan = match options.method {
            Method::Rtn => Plan::Rtn,
            Method::Awq => return Err(Error::shape("Rounder", "AWQ without scales")),
            Method::Gptq => Plan::Gptq(Box::new(GptqPlan::new(rec, options, group_size, curvature).await?)),
            Method::Quip => Plan::Quip(quip::Plan::new(rec, options, curvature)?),
        };
        Ok(Self { options, group_size, plan })
    }

    /// AWQ with the scales found for the group's linears.
    pub fn awq(
        options: &'a QuantizeOptions,
        group_size: Option<usize>,
        activations: Activations,
        scaling: Scaling,
    ) -> Self {
        let group_size = group_size.unwrap_or(scaling.scales.len());
        Self { options, group_size, plan: Plan::Awq(activations, scaling) }
    }

    /// The scales of the inputs, which whatever makes the inputs must be divided by; `None` but for AWQ.
    pub fn scaling(&self) -> Option<&Scaling> {
        match &self.plan {
            Plan::Awq(_, scaling) => Some(scaling),
            _ => None,
        }
    }

    /// ρ_r that was used, greater than asked for where the factorisation failed; `None` for RTN and AWQ.
    pub fn damping(&self) -> Option<f64> {
        match &self.plan {
            Plan::Rtn | Plan::Awq(..) => None,
            Plan::Gptq(plan) => Some(plan.damping),
            Plan::Quip(plan) => Some(plan.damping()),
        }
    }

    /// Whether it rounds by what is known of the inputs.
    pub fn needs_data(&self) -> bool {
        !matches!(self.plan, Plan::Rtn)
    }

    /// Rounds `weight` `[m, n]` of `layer`; [`refine`](Self::refine) makes the best of it.
    pub async fn round(&self, rec: &mut Recorder, layer: Layer<'_>, weight: &Tensor) -> Result<Rounded> {
        let Layer { name, bits } = layer;
        let spec = spec(self.options, self.group_size, bits);
        let (codes, grid) = match &self.plan {
            Plan::Quip(plan) => {
                let dequantized = plan.round(rec, self.options, &spec, name, weight).await?;
                return Ok(Rounded { codes: None, dequantized });
            }
            Plan::Awq(activations, scaling) => {
                return activations.round(rec, weight, &scaling.scales, &spec);
            }
            Plan::Rtn => {
                let grid = grid::search(rec, weight, None, &without_weights(spec))?;
                let (codes, dequantized) = rtn::round(rec, weight, &grid, spec.group_size, bits)?;
                return Ok(Rounded { codes: Some(Codes { bits, codes, grid }), dequantized });
            }
            Plan::Gptq(plan) => gptq::quantize(rec, weight, &plan.columns, &spec)?,
        };
        let dequantized = dequantize(rec, &codes, &grid, spec.group_size)?;
        Ok(Rounded { codes: Some(Codes { bits, codes, grid }), dequantized })
    }

    /// Better codes and scales for what `weight`, `[m, n]`, was rounded to, by the passes of descent that the options ask for after
    /// GPTQ; of other methods `rounded` as it is.
    pub fn refine(&self, rec: &mut Recorder, weight: &Tensor, rounded: Rounded) -> Result<Rounded> {
        let Plan::Gptq(plan) = &self.plan else { return Ok(rounded) };
        let Some(descent) = &plan.descent else { return Ok(rounded) };
        let Some(Codes { bits, codes, mut grid }) = rounded.codes else { return Ok(rounded) };
        let spec = spec(self.options, self.group_size, bits);
        let codes = descent.descend(rec, weight, &codes, &mut grid, &spec)?;
        let dequantized = dequantize(rec, &codes, &grid, spec.group_size)?;
        Ok(Rounded { codes: Some(Codes { bits, codes, grid }), dequantized })
    }

    /// The layer as a checkpoint stores it. Errors: `Error::NotFinite` if a scale or weight is not finite.
    pub async fn store(&self, rec: &mut Recorder, name: &str, rounded: &Rounded) -> Result<StoredLinear> {
        let not_finite = |what: &str| Error::NotFinite {
            place: format!("{name}: its {what}"),
            remedy: phrase![
                "the weights overflow; try ",
                Setting::Alpha.set_to("off"),
                " or a larger ",
                Setting::CorrectionDamping,
            ],
        };
        let [rows, columns] = rounded.dequantized.matrix("store")?;
        let name = name.to_string();
        let Some(Codes { bits, codes, grid }) = &rounded.codes else {
            let weight = rec.read(&rounded.dequantized).await?;
            if weight.iter().any(|w| !w.is_finite()) {
                return Err(not_finite("rounded weight"));
            }
            return Ok(StoredLinear::Dense(DenseLinear { name, rows, columns, weight }));
        };
        let codes = rec.read(codes).await?.into_iter().map(|code| code as u8).collect();
        let scales: Vec<f32> = rec.read(&grid.scales).await?;
        if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(not_finite("scales"));
        }
        Ok(StoredLinear::Codes(QuantizedLinear {
            name,
            rows,
            columns,
            bits: *bits,
            group_size: self.group_size,
            symmetric: self.options.symmetry == Symmetry::Symmetric,
            codes,
            scales: scales.into_iter().map(f16::from_f32).collect(),
            zeros: rec.read(&grid.zeros).await?.into_iter().map(|zero| zero as u8).collect(),
        }))
    }
}

impl<'a> GptqPlan<'a> {
    async fn new(
        rec: &mut Recorder,
        options: &QuantizeOptions,
        group_size: usize,
        curvature: Curvature<'a>,
    ) -> Result<Self> {
        let Curvature { hessian, diagonal, place } = curvature;
        let (order, groups) = match options.activation_order {
            ActivationOrder::Descending => (diagonal.activation_order(), Groups::Static),
            // One group per row starts where nothing has been updated yet.
            ActivationOrder::Natural if group_size >= hessian.n() => (natural(hessian.n()), Groups::Static),
            ActivationOrder::Natural => (natural(hessian.n()), Groups::Dynamic),
        };
        let (factor, damping) = factor_damped(rec, hessian, &order, diagonal, options.rounding_damping)
            .await?
            .ok_or_else(|| Error::NotFinite {
                place: format!("{place}: the Cholesky factor of the damped Hessian"),
                remedy: "check the calibration text and the weights".into(),
            })?;
        let descent = match options.descent_passes {
            0 => None,
            passes => Some(Descent::new(rec, hessian, diagonal.ridge(damping), passes)?),
        };
        let pivots = match options.grid {
            Search::Weighted => Some(gptq::pivots(rec, &factor, &order).await?),
            Search::MinMax | Search::Mse => None,
        };
        Ok(Self { columns: gptq::Plan { factor, order, groups, pivots }, damping, descent })
    }
}

/// The factor of H + ρI·mean(diag H), and ρ, raised from `damping` until there is a factor.
pub(super) async fn factor_damped(
    rec: &mut Recorder,
    hessian: &Packed,
    order: &[u32],
    diagonal: &Damping,
    mut damping: f64,
) -> Result<Option<(Factor, f64)>> {
    while damping <= MAX_DAMPING {
        if let Some(factor) = cholesky::factor(rec, hessian, order, diagonal.ridge(damping)).await? {
            return Ok(Some((factor, damping)));
        }
        damping *= 10.0;
    }
    Ok(None)
}

fn natural(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

/// The grids that `options` ask for, with `group_size` columns and `bits` bits each.
pub fn spec(options: &QuantizeOptions, group_size: usize, bits: u32) -> GridSpec {
    GridSpec { bits, group_size, symmetry: options.symmetry, search: options.grid, scale_type: options.scale_type }
}

/// Without data there is nothing to weigh columns by.
fn without_weights(spec: GridSpec) -> GridSpec {
    let search = if spec.search == Search::Weighted { Search::Mse } else { spec.search };
    GridSpec { search, ..spec }
}
