//! From a weight to codes on a grid, by the base quantizer that was asked for: RTN, GPTQ or AWQ.

use half::f16;

use super::gptq::{self, Groups};
use super::{ActivationOrder, Activations, Damping, QuantizeOptions, Scaling};
use crate::checkpoint::QuantizedLinear;
use crate::device::Recorder;
use crate::ops::cholesky::{self, Factor};
use crate::ops::dequantize::dequantize;
use crate::ops::gram::Packed;
use crate::ops::grid::{self, Grid, GridSpec, Symmetry};
use crate::ops::rtn;

use crate::tensor::Tensor;
use crate::{Error, Result};

/// A rounded weight.
#[derive(Debug)]
pub struct Rounded {
    /// q, `[m, n]`. After AWQ, codes and grid are of W·diag(s).
    pub codes: Tensor<u32>,
    /// s and z, `[m, groups]` each.
    pub grid: Grid,
    /// s·(q − z), `[m, n]`; after AWQ times the diag(1/s) that the checkpoint folds into the input.
    pub dequantized: Tensor,
}

/// The base quantizer, ready for all linears of a group.
#[derive(Debug)]
pub struct Rounder {
    spec: GridSpec,
    gptq: Option<GptqPlan>,
    awq: Option<(Activations, Scaling)>,
}

#[derive(Debug)]
struct GptqPlan {
    factor: Factor,
    order: Vec<u32>,
    groups: Groups,
    damping: f64,
}

/// ρ_r is multiplied by ten until the factorisation succeeds, but not beyond this.
const MAX_DAMPING: f64 = 1e6;

impl Rounder {
    /// RTN: needs no data. `n`: inputs of the group.
    pub fn rtn(options: &QuantizeOptions, group_size: Option<usize>, n: usize) -> Self {
        Self { spec: spec(options, group_size, n), gptq: None, awq: None }
    }

    /// GPTQ for the group whose undamped H and its diagonal are given. `place` names the group in errors.
    pub async fn gptq(
        rec: &mut Recorder,
        options: &QuantizeOptions,
        group_size: Option<usize>,
        hessian: &Packed,
        diagonal: &Damping,
        place: &str,
    ) -> Result<Self> {
        let spec = spec(options, group_size, hessian.n());
        let (order, groups) = match options.activation_order {
            ActivationOrder::Descending => (diagonal.activation_order(), Groups::Static),
            // One group per row starts where nothing has been updated yet.
            ActivationOrder::Natural if spec.group_size >= hessian.n() => (natural(hessian.n()), Groups::Static),
            ActivationOrder::Natural => (natural(hessian.n()), Groups::Dynamic),
        };
        let mut damping = options.rounding_damping;
        let factor = loop {
            if let Some(factor) = cholesky::factor(rec, hessian, &order, diagonal.ridge(damping)).await? {
                break factor;
            }
            damping *= 10.0;
            if damping > MAX_DAMPING {
                return Err(Error::NotFinite {
                    place: format!("{place}: the Cholesky factor of the damped Hessian"),
                    remedy: "check the calibration text and the weights".to_string(),
                });
            }
        };
        Ok(Self { spec, gptq: Some(GptqPlan { factor, order, groups, damping }), awq: None })
    }

    /// AWQ with the scales found for the group's linears on grids of `spec`.
    pub fn awq(spec: GridSpec, activations: Activations, scaling: Scaling) -> Self {
        Self { spec, gptq: None, awq: Some((activations, scaling)) }
    }

    /// The scales of the inputs, which whatever makes the inputs must be divided by; `None` but for AWQ.
    pub fn scaling(&self) -> Option<&Scaling> {
        self.awq.as_ref().map(|(_, scaling)| scaling)
    }

    /// ρ_r that was used, greater than asked for where the factorisation failed; `None` but for GPTQ.
    pub fn damping(&self) -> Option<f64> {
        self.gptq.as_ref().map(|plan| plan.damping)
    }

    /// Rounds `weight` `[m, n]`.
    pub fn round(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Rounded> {
        if let Some((activations, scaling)) = &self.awq {
            return activations.round(rec, weight, &scaling.scales, &self.spec);
        }
        let (codes, grid) = match &self.gptq {
            None => {
                let grid = grid::search(rec, weight, &self.spec)?;
                let (codes, dequantized) = rtn::round(rec, weight, &grid, self.spec.group_size, self.spec.bits)?;
                return Ok(Rounded { codes, grid, dequantized });
            }
            Some(plan) => gptq::quantize(rec, weight, &plan.factor, &plan.order, &self.spec, plan.groups)?,
        };
        let dequantized = dequantize(rec, &codes, &grid, self.spec.group_size)?;
        Ok(Rounded { codes, grid, dequantized })
    }

    /// The layer as a checkpoint stores it. Errors: `Error::NotFinite` if a scale is not finite.
    pub async fn store(&self, rec: &mut Recorder, name: &str, rounded: &Rounded) -> Result<QuantizedLinear> {
        let [rows, columns] = rounded.codes.matrix("store")?;
        let codes = rec.read(&rounded.codes).await?.into_iter().map(|code| code as u8).collect();
        let scales: Vec<f32> = rec.read(&rounded.grid.scales).await?;
        if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(Error::NotFinite {
                place: format!("{name}: its scales"),
                remedy: "the weights overflow; try --alpha off or a larger --correction-damping".to_string(),
            });
        }
        Ok(QuantizedLinear {
            name: name.to_string(),
            rows,
            columns,
            bits: self.spec.bits,
            group_size: self.spec.group_size,
            symmetric: self.spec.symmetry == Symmetry::Symmetric,
            codes,
            scales: scales.into_iter().map(f16::from_f32).collect(),
            zeros: rec.read(&rounded.grid.zeros).await?.into_iter().map(|zero| zero as u8).collect(),
        })
    }
}

fn natural(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

/// The grids that `options` ask for on weights of `n` columns.
pub fn spec(options: &QuantizeOptions, group_size: Option<usize>, n: usize) -> GridSpec {
    GridSpec {
        bits: options.bits,
        group_size: group_size.unwrap_or(n),
        symmetry: options.symmetry,
        search: options.grid,
        scale_type: options.scale_type,
    }
}
