//! GPTQ (Frantar et al., arXiv 2210.17323): column by column, each column making up for the rounding of those before it.
//!
//! This file chooses the order of the columns, where grids come from, and the passes of descent afterwards. The loop itself is
//! [`column_loop`].

use futures::future::{LocalBoxFuture, ready};

use super::{
    BaseQuantizer, GRID_SEARCH, GroupInput, GroupRounder, HessianForm, InputNeeds, Layer, LinearExtent, LinearWork,
    ScaleSearch,
};
use crate::device::{Recorder, Tensor};
use crate::ops::dequantize::dequantize;
use crate::ops::grid::{self, GridSpec, Search};
use crate::quant::curvature::DampedFactor;
use crate::quant::descent::{Descent, UNPACKED_ROWS};
use crate::quant::{ActivationOrder, Codes, QuantizeOptions, RoundedWeight, column_loop};
use crate::{Error, Result};

/// GPTQ.
#[derive(Debug)]
pub(super) struct Gptq;

impl BaseQuantizer for Gptq {
    fn needs(&self) -> InputNeeds {
        InputNeeds { hessian: Some(HessianForm::Tiles), magnitudes: false }
    }

    fn held_elements(&self, n: u64) -> u64 {
        // Rows of H for the scales of a descent.
        n * n.min(UNPACKED_ROWS as u64)
    }

    fn preparation_work(&self, n: f64) -> f64 {
        // The factor, and its inverse.
        n * n * n
    }

    fn linear_work(&self, options: &QuantizeOptions, linear: LinearExtent) -> LinearWork {
        LinearWork {
            rounding: GRID_SEARCH * linear.weights() + linear.product() * 0.5,
            // H·E for codes, and H·E again and H·Q for scales.
            search: 3.0 * linear.product() * options.descent_passes as f64,
        }
    }

    fn prepare<'r, 'a: 'r>(
        &self,
        rec: &'r mut Recorder,
        input: GroupInput<'a>,
        _search: ScaleSearch<'r>,
    ) -> LocalBoxFuture<'r, Result<Box<dyn GroupRounder + 'a>>> {
        Box::pin(async move { Ok(Box::new(GptqRounder::new(rec, input).await?) as Box<dyn GroupRounder>) })
    }
}

/// GPTQ for the linears of one group.
#[derive(Debug)]
struct GptqRounder<'a> {
    order: ActivationOrder,
    search: Search,
    factor: DampedFactor,
    /// The pivots R_jj² of the factor, where grids are chosen by them.
    pivots: Option<Tensor>,
    descent: Option<Descent<'a>>,
}

impl<'a> GptqRounder<'a> {
    async fn new(rec: &mut Recorder, input: GroupInput<'a>) -> Result<Self> {
        let GroupInput { options, curvature, .. } = input;
        let curvature = curvature.ok_or_else(|| Error::shape("gptq", "no Hessian"))?;
        let columns = match options.activation_order {
            ActivationOrder::Descending => curvature.diagonal.activation_order(),
            ActivationOrder::Natural => (0..curvature.hessian.n() as u32).collect(),
        };
        let factor = curvature.factor(rec, columns, options.rounding_damping, "damped Hessian").await?;
        let descent = match options.descent_passes {
            0 => None,
            passes => Some(Descent::new(rec, curvature.hessian, curvature.diagonal.ridge(factor.damping), passes)?),
        };
        let pivots = match options.grid {
            Search::Weighted => Some(factor.pivots(rec).await?),
            Search::MinMax | Search::Mse => None,
        };
        Ok(Self { order: options.activation_order, search: options.grid, factor, pivots, descent })
    }

    fn round_now(&self, rec: &mut Recorder, spec: GridSpec, weight: &Tensor) -> Result<RoundedWeight> {
        let pivots = self.pivots.as_ref();
        // The first group starts before any update, so with one group per row its grid is that of W*. Groups that share units need
        // all grids of a row at once.
        let natural = self.order == ActivationOrder::Natural && spec.shared_groups().is_none();
        let by_group = natural && spec.group_size < weight.shape()[1];
        let (codes, grid) = if by_group {
            column_loop::round_group_by_group(rec, weight, &self.factor, &spec, (self.search, pivots))?
        } else {
            let grid = grid::search(rec, weight, pivots, &spec, self.search)?;
            (column_loop::round_to_grid(rec, weight, &self.factor, &spec, &grid)?, grid)
        };
        let dequantized = dequantize(rec, &codes, &grid, &spec)?;
        Ok(RoundedWeight { codes: Some(Codes { spec, codes, grid }), dequantized })
    }
}

impl GroupRounder for GptqRounder<'_> {
    fn round<'r>(
        &'r self,
        rec: &'r mut Recorder,
        layer: Layer<'r>,
        weight: &'r Tensor,
    ) -> LocalBoxFuture<'r, Result<RoundedWeight>> {
        Box::pin(ready(self.round_now(rec, layer.grid, weight)))
    }

    /// The passes of descent that the options ask for.
    fn refine(&self, rec: &mut Recorder, weight: &Tensor, rounded: RoundedWeight) -> Result<RoundedWeight> {
        let Some(descent) = &self.descent else { return Ok(rounded) };
        let Some(Codes { spec, codes, mut grid }) = rounded.codes else { return Ok(rounded) };
        let codes = descent.descend(rec, weight, &codes, &mut grid, &spec)?;
        let dequantized = dequantize(rec, &codes, &grid, &spec)?;
        Ok(RoundedWeight { codes: Some(Codes { spec, codes, grid }), dequantized })
    }

    fn damping(&self) -> Option<f64> {
        Some(self.factor.damping)
    }
}
