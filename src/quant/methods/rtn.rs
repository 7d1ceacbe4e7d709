//! Round to nearest: every weight by itself, on grids chosen from the weights. It needs no calibration.

use futures::future::{LocalBoxFuture, ready};

use super::{
    BaseQuantizer, GRID_SEARCH, GroupInput, GroupRounder, InputNeeds, Layer, LinearExtent, LinearWork, ScaleSearch,
};
use crate::Result;
use crate::device::{Recorder, Tensor};
use crate::ops::grid::{self, GridSpec, Search};
use crate::ops::rtn;
use crate::quant::{Codes, QuantizeOptions, RoundedWeight};

/// Round to nearest.
#[derive(Debug)]
pub(super) struct Rtn;

impl BaseQuantizer for Rtn {
    fn needs(&self) -> InputNeeds {
        InputNeeds { hessian: None, magnitudes: false }
    }

    fn held_elements(&self, _n: u64) -> u64 {
        0
    }

    fn linear_work(&self, _options: &QuantizeOptions, linear: LinearExtent) -> LinearWork {
        LinearWork { rounding: GRID_SEARCH * linear.weights(), search: 0.0 }
    }

    fn prepare<'r, 'a: 'r>(
        &self,
        _rec: &'r mut Recorder,
        input: GroupInput<'a>,
        _search: ScaleSearch<'r>,
    ) -> LocalBoxFuture<'r, Result<Box<dyn GroupRounder + 'a>>> {
        // Without H there are no pivots to weigh columns by, so such a search becomes MSE.
        let search = if input.options.grid == Search::Weighted { Search::Mse } else { input.options.grid };
        Box::pin(ready(Ok(Box::new(RtnRounder { search }) as Box<dyn GroupRounder>)))
    }
}

/// RTN for the linears of one group.
#[derive(Debug)]
struct RtnRounder {
    search: Search,
}

impl GroupRounder for RtnRounder {
    fn round<'r>(
        &'r self,
        rec: &'r mut Recorder,
        layer: Layer<'r>,
        weight: &'r Tensor,
    ) -> LocalBoxFuture<'r, Result<RoundedWeight>> {
        Box::pin(ready(round(rec, weight, layer.grid, self.search)))
    }
}

fn round(rec: &mut Recorder, weight: &Tensor, spec: GridSpec, search: Search) -> Result<RoundedWeight> {
    let grid = grid::search(rec, weight, None, &spec, search)?;
    let (codes, dequantized) = rtn::round(rec, weight, &grid, &spec)?;
    Ok(RoundedWeight { codes: Some(Codes { spec, codes, grid }), dequantized })
}
