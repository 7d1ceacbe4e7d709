//! The column loop of GPTQ with the reversed Cholesky factor alone (Frantar et al., arXiv 2210.17323; gpu.md C.3).
//!
//! H + λI = R·Rᵀ with R upper. Rn is R with each column divided by its diagonal entry. GPTQ rounds at column i the value
//! t_i = w_i + Σ_{j<i} (w_j − q_j)·Rn[j, i]. No matrix is inverted, and W is never updated. QuIP's LDLQ is the same loop.

use std::ops::Range;

use super::curvature::DampedFactor;
use crate::Result;
use crate::device::{Recorder, Tensor};
use crate::ops::cholesky::normalised_columns;
use crate::ops::gptq::{Block, quantize_block, updated_group};
use crate::ops::grid::{self, Grid, GridSpec, Search};
use crate::ops::matmul::{Orientation, Rows, accumulate};
use crate::ops::permute::{from_columns, to_columns};

/// Columns whose updates to each other are made inside one kernel. Updates to later columns are made in one product per block.
const BLOCK: usize = 128;

/// Rounds `weight` `[m, n]` to a given grid, with the columns in the order of `factor`. Returns the codes `[m, n]` in stored order.
pub(super) fn round_to_grid(
    rec: &mut Recorder,
    weight: &Tensor,
    factor: &DampedFactor,
    spec: &GridSpec,
    grid: &Grid,
) -> Result<Tensor<u32>> {
    let mut state = Loop::new(rec, weight, factor, spec)?;
    let order = &factor.order;
    let group_of = order.iter().map(|&column| column / spec.group_size as u32).collect();
    let group_of = rec.upload(&[order.len()], group_of)?;
    state.quantize(rec, 0..order.len(), grid, &group_of)?;
    state.stored_codes(rec)
}

/// Rounds `weight` `[m, n]` group by group, choosing the grid of a group from the weights as updated when its first column is
/// reached. The order of `factor` must be the stored one. `pivots`: `[n, 1]` for grids that are chosen by them. Scales may share no
/// units.
///
/// Returns the codes `[m, n]` and the grid.
pub(super) fn round_group_by_group(
    rec: &mut Recorder,
    weight: &Tensor,
    factor: &DampedFactor,
    spec: &GridSpec,
    (search, pivots): (Search, Option<&Tensor>),
) -> Result<(Tensor<u32>, Grid)> {
    let mut state = Loop::new(rec, weight, factor, spec)?;
    let grid = state.quantize_group_by_group(rec, search, pivots)?;
    Ok((state.stored_codes(rec)?, grid))
}

/// The state of the loop; all matrices are `[n, m]` in processing order.
struct Loop<'a> {
    spec: &'a GridSpec,
    factor: &'a DampedFactor,
    /// The processing order on the device.
    order: Tensor<u32>,
    /// W*, which stays as it is.
    weight: Tensor,
    /// w − q of the columns done.
    errors: Tensor,
    codes: Tensor<u32>,
}

/// Some consecutive columns before they are rounded.
struct Slab {
    /// Rn[0..start + count, start..start + count].
    columns: Tensor,
    /// t over the columns before `start`: `[count, m]`.
    targets: Tensor,
}

impl<'a> Loop<'a> {
    /// The state before the first column. `weight`: `[m, n]` in stored order.
    fn new(rec: &mut Recorder, weight: &Tensor, factor: &'a DampedFactor, spec: &'a GridSpec) -> Result<Self> {
        let [rows, n] = weight.matrix("gptq")?;
        let order = rec.upload(&[n], factor.order.clone())?;
        let weight = to_columns(rec, weight, &order)?;
        let (errors, codes) = (rec.zeros(&[n, rows])?, rec.zeros(&[n, rows])?);
        Ok(Self { spec, factor, order, weight, errors, codes })
    }

    /// The codes `[m, n]` in stored order.
    fn stored_codes(&self, rec: &mut Recorder) -> Result<Tensor<u32>> {
        from_columns(rec, &self.codes, &self.order)
    }

    /// `count` columns from `start`, with the errors of all columns before `start` added.
    fn slab(&self, rec: &mut Recorder, start: usize, count: usize) -> Result<Slab> {
        let columns = normalised_columns(rec, &self.factor.factor, start, count)?;
        let mut targets = rec.copy_rows(&self.weight, start, count)?;
        if start > 0 {
            let done = Rows { tensor: &self.errors, start: 0, count: start };
            accumulate(rec, Orientation::Tn, Rows { tensor: &columns, start: 0, count: start }, done, &mut targets, 0)?;
        }
        Ok(Slab { columns, targets })
    }

    /// Rounds the columns of `range`, block by block.
    fn quantize(&mut self, rec: &mut Recorder, range: Range<usize>, grid: &Grid, group_of: &Tensor<u32>) -> Result<()> {
        for start in range.clone().step_by(BLOCK) {
            let count = BLOCK.min(range.end - start);
            let slab = self.slab(rec, start, count)?;
            let block = Block {
                w: &self.weight,
                t: &slab.targets,
                columns: &slab.columns,
                spec: self.spec,
                grid,
                group_of,
                start,
                count,
            };
            quantize_block(rec, block, &mut self.errors, &mut self.codes)?;
        }
        Ok(())
    }

    /// Rounds all columns group by group. Returns the grid, `[m, groups]`.
    fn quantize_group_by_group(&mut self, rec: &mut Recorder, search: Search, pivots: Option<&Tensor>) -> Result<Grid> {
        let [n, rows] = self.weight.matrix("gptq")?;
        let groups = n.div_ceil(self.spec.group_size);
        let (mut scales, mut zeros) = (rec.empty(&[groups, rows])?, rec.empty(&[groups, rows])?);
        let only_group = rec.zeros(&[n])?;
        for (group, start) in (0..n).step_by(self.spec.group_size).enumerate() {
            let count = self.spec.group_size.min(n - start);
            let slab = self.slab(rec, start, count)?;
            let updated = updated_group(rec, &self.weight, &slab.targets, &slab.columns, start, count)?;
            let stored_order = identity(rec, count)?;
            let updated = from_columns(rec, &updated, &stored_order)?;
            let pivots = pivots.map(|pivots| rec.copy_rows(pivots, start, count)).transpose()?;
            let grid =
                grid::search(rec, &updated, pivots.as_ref(), &GridSpec { group_size: count, ..*self.spec }, search)?;
            self.quantize(rec, start..start + count, &grid, &only_group)?;
            rec.write_rows(&grid.scales.reshape(&[1, rows])?, &mut scales, group)?;
            rec.write_rows(&grid.zeros.reshape(&[1, rows])?, &mut zeros, group)?;
        }
        let stored_order = identity(rec, groups)?;
        let scales = from_columns(rec, &scales, &stored_order)?;
        Ok(Grid { scales, zeros: from_columns(rec, &zeros, &stored_order)?, units: None })
    }
}

/// 0, 1, … n − 1.
fn identity(rec: &mut Recorder, n: usize) -> Result<Tensor<u32>> {
    rec.upload(&[n], (0..n as u32).collect())
}
