//! From a weight to codes on a grid, by the base quantizer that was asked for: RTN or GPTQ.

use half::f16;

use super::descent::Descent;
use super::gptq::{self, Groups};
use super::{ActivationOrder, Damping, QuantizeOptions};
use crate::checkpoint::QuantizedLinear;
use crate::device::Recorder;
use crate::ops::cholesky;
use crate::ops::dequantize::dequantize;
use crate::ops::gram::Packed;
use crate::ops::grid::{self, Grid, GridSpec, Search, Symmetry};
use crate::ops::rtn;

use crate::tensor::Tensor;
use crate::{Error, Result};

/// A rounded weight.
#[derive(Debug)]
pub struct Rounded {
    /// q, `[m, n]`.
    pub codes: Tensor<u32>,
    /// s and z, `[m, groups]` each.
    pub grid: Grid,
    /// s·(q − z), `[m, n]`.
    pub dequantized: Tensor,
}

/// The base quantizer, ready for all linears of a group.
#[derive(Debug)]
pub struct Rounder {
    spec: GridSpec,
    gptq: Option<GptqPlan>,
}

#[derive(Debug)]
struct GptqPlan {
    columns: gptq::Plan,
    damping: f64,
    descent: Option<Descent>,
}

/// ρ_r is multiplied by ten until the factorisation succeeds, but not beyond this.
const MAX_DAMPING: f64 = 1e6;

impl Rounder {
    /// RTN: needs no data. `n`: inputs of the group.
    pub fn rtn(options: &QuantizeOptions, group_size: Option<usize>, n: usize) -> Self {
        let spec = spec(options, group_size, n);
        // Without data there is nothing to weigh columns by.
        let search = if spec.search == Search::Weighted { Search::Mse } else { spec.search };
        Self { spec: GridSpec { search, ..spec }, gptq: None }
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
        let descent = match options.descent_passes {
            0 => None,
            passes => Some(Descent::new(rec, hessian, diagonal.ridge(damping), passes)?),
        };
        let pivots = match spec.search {
            Search::Weighted => Some(gptq::pivots(rec, &factor, &order).await?),
            Search::MinMax | Search::Mse => None,
        };
        let columns = gptq::Plan { factor, order, groups, pivots };
        Ok(Self { spec, gptq: Some(GptqPlan { columns, damping, descent }) })
    }

    /// ρ_r that was used, greater than asked for where the factorisation failed; `None` for RTN.
    pub fn damping(&self) -> Option<f64> {
        self.gptq.as_ref().map(|plan| plan.damping)
    }

    /// Rounds `weight` `[m, n]`.
    pub fn round(&self, rec: &mut Recorder, weight: &Tensor) -> Result<Rounded> {
        let (codes, grid) = match &self.gptq {
            None => {
                let grid = grid::search(rec, weight, None, &self.spec)?;
                let (codes, dequantized) = rtn::round(rec, weight, &grid, self.spec.group_size, self.spec.bits)?;
                return Ok(Rounded { codes, grid, dequantized });
            }
            Some(plan) => {
                let (mut codes, mut grid) = gptq::quantize(rec, weight, &plan.columns, &self.spec)?;
                if let Some(descent) = &plan.descent {
                    codes = descent.descend(rec, weight, &codes, &mut grid, &self.spec)?;
                }
                (codes, grid)
            }
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

fn spec(options: &QuantizeOptions, group_size: Option<usize>, n: usize) -> GridSpec {
    GridSpec {
        bits: options.bits,
        group_size: group_size.unwrap_or(n),
        symmetry: options.symmetry,
        search: options.grid,
        scale_type: options.scale_type,
    }
}
