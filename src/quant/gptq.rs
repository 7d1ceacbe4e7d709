//! The GPTQ column loop with the reversed Cholesky factor alone (Frantar et al., arXiv 2210.17323; gpu.md C.3).
//!
//! With H + λI = R·Rᵀ, R upper, and Rn = R with columns divided by their diagonal, the weight that GPTQ rounds at
//! column i is t_i = w_i + Σ_{j<i} (w_j − q_j)·Rn[j, i]. Nothing is inverted and W is never updated.

use std::ops::Range;

use crate::Result;
use crate::device::Recorder;
use crate::ops::cholesky::{Factor, normalised_columns};
use crate::ops::gptq::{Block, quantize_block, updated_group};
use crate::ops::gram;
use crate::ops::grid::{self, Grid, GridSpec};
use crate::ops::matmul::{Orientation, Rows, accumulate};
use crate::ops::permute::{from_columns, to_columns};
use crate::tensor::Tensor;

/// Columns whose mutual updates are made inside one kernel; those on later columns come in one product.
const BLOCK: usize = 128;

/// Where a group's grid comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Groups {
    /// All grids from the weight as handed in.
    Static,
    /// Each from the weights as updated when its first column is reached.
    Dynamic,
}

/// What all linears of a group share.
#[derive(Debug)]
pub(super) struct Plan {
    pub factor: Factor,
    /// Processed column i is original column `order[i]`.
    pub order: Vec<u32>,
    pub groups: Groups,
    /// R_jj² of every original column j, `[n, 1]`, where grids are chosen by it: the loss tr(E·(H + λI)·Eᵀ) is the sum of
    /// R_jj²·(t_j − q_j)² over rows and columns.
    pub pivots: Option<Tensor>,
}

/// R_jj² by original column, `[n, 1]`, relative to their mean.
pub(super) async fn pivots(rec: &mut Recorder, factor: &Factor, order: &[u32]) -> Result<Tensor> {
    let n = order.len();
    // The factor is that of the reversed order.
    let diagonal: Vec<f32> = gram::diagonal(rec, factor.m()).await?;
    let mean = diagonal.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>() / n as f64;
    let mut pivots = vec![0.0; n];
    for (&column, r) in order.iter().rev().zip(diagonal) {
        pivots[column as usize] = (f64::from(r).powi(2) / mean) as f32;
    }
    rec.upload(&[n, 1], pivots)
}

/// Rounds `weight` `[m, n]`. Returns the codes `[m, n]` in stored order, and the grid.
pub(super) fn quantize(
    rec: &mut Recorder,
    weight: &Tensor,
    plan: &Plan,
    spec: &GridSpec,
) -> Result<(Tensor<u32>, Grid)> {
    let pivots = plan.pivots.as_ref();
    if plan.groups == Groups::Static {
        let grid = grid::search(rec, weight, pivots, spec)?;
        return Ok((quantize_on(rec, weight, (&plan.factor, &plan.order), spec, &grid)?, grid));
    }
    let (mut state, order) = Loop::new(rec, weight, (&plan.factor, &plan.order), spec)?;
    let grid = state.quantize_dynamic(rec, pivots)?;
    Ok((from_columns(rec, &state.codes, &order)?, grid))
}

/// Rounds `weight` `[m, n]` on a grid that is given, columns in `order`. Returns the codes `[m, n]` in stored order.
pub(super) fn quantize_on(
    rec: &mut Recorder,
    weight: &Tensor,
    (factor, order): (&Factor, &[u32]),
    spec: &GridSpec,
    grid: &Grid,
) -> Result<Tensor<u32>> {
    let (mut state, order_on_device) = Loop::new(rec, weight, (factor, order), spec)?;
    let group_of = order.iter().map(|&column| column / spec.group_size as u32).collect();
    let group_of = rec.upload(&[order.len()], group_of)?;
    state.quantize(rec, 0..order.len(), grid, &group_of)?;
    from_columns(rec, &state.codes, &order_on_device)
}

/// The state of the loop, all `[n, m]` in processing order.
struct Loop<'a> {
    spec: &'a GridSpec,
    factor: &'a Factor,
    /// W*, as it was.
    weight: Tensor,
    /// w − q of the columns done.
    errors: Tensor,
    codes: Tensor<u32>,
}

/// What `count` columns owe to the columns before them.
struct Slab {
    /// Rn[0..start + count, start..start + count].
    columns: Tensor,
    /// t over the columns before `start`: `[count, m]`.
    targets: Tensor,
}

impl<'a> Loop<'a> {
    /// Before the first column; with the order on the device.
    fn new(
        rec: &mut Recorder,
        weight: &Tensor,
        (factor, order): (&'a Factor, &[u32]),
        spec: &'a GridSpec,
    ) -> Result<(Self, Tensor<u32>)> {
        let [rows, n] = weight.matrix("gptq")?;
        let order = rec.upload(&[n], order.to_vec())?;
        let weight = to_columns(rec, weight, &order)?;
        let (errors, codes) = (rec.zeros(&[n, rows])?, rec.zeros(&[n, rows])?);
        Ok((Self { spec, factor, weight, errors, codes }, order))
    }

    /// The targets of `count` columns from `start`, with the errors of all columns before.
    fn slab(&self, rec: &mut Recorder, start: usize, count: usize) -> Result<Slab> {
        let columns = normalised_columns(rec, self.factor, start, count)?;
        let mut targets = rec.copy_rows(&self.weight, start, count)?;
        if start > 0 {
            let done = Rows { tensor: &self.errors, start: 0, count: start };
            accumulate(rec, Orientation::Tn, Rows { tensor: &columns, start: 0, count: start }, done, &mut targets, 0)?;
        }
        Ok(Slab { columns, targets })
    }

    /// Rounds consecutive columns, block by block.
    fn quantize(&mut self, rec: &mut Recorder, range: Range<usize>, grid: &Grid, group_of: &Tensor<u32>) -> Result<()> {
        for start in range.clone().step_by(BLOCK) {
            let count = BLOCK.min(range.end - start);
            let slab = self.slab(rec, start, count)?;
            let block = Block {
                w: &self.weight,
                t: &slab.targets,
                columns: &slab.columns,
                grid,
                group_of,
                start,
                count,
                bits: self.spec.bits,
            };
            quantize_block(rec, block, &mut self.errors, &mut self.codes)?;
        }
        Ok(())
    }

    /// Rounds group by group, each grid from the weights as updated so far. Columns must be in stored order.
    fn quantize_dynamic(&mut self, rec: &mut Recorder, pivots: Option<&Tensor>) -> Result<Grid> {
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
            let grid = grid::search(rec, &updated, pivots.as_ref(), &GridSpec { group_size: count, ..*self.spec })?;
            self.quantize(rec, start..start + count, &grid, &only_group)?;
            rec.write_rows(&grid.scales.reshape(&[1, rows])?, &mut scales, group)?;
            rec.write_rows(&grid.zeros.reshape(&[1, rows])?, &mut zeros, group)?;
        }
        let stored_order = identity(rec, groups)?;
        let scales = from_columns(rec, &scales, &stored_order)?;
        Ok(Grid { scales, zeros: from_columns(rec, &zeros, &stored_order)? })
    }
}

fn identity(rec: &mut Recorder, n: usize) -> Result<Tensor<u32>> {
    rec.upload(&[n], (0..n as u32).collect())
}
