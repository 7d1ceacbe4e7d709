//! The choice between candidate grids in AWQ. Each cell, that is each group of each row, keeps the grid with the least error at
//! the output. The candidates differ in how far they shrink, or clip, the range of the weights. The shader is `clip`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::Grid;
use crate::ops::math::{sum, vectorised};
use crate::ops::spread;
use crate::{Error, Result};

/// The best grid so far, for every row and group.
#[derive(Debug)]
pub struct Best {
    /// Scales s and zero points z, `[m, groups]` each.
    pub grid: Grid,
    /// Loss of the grid in every row and group, `[m, groups]`.
    losses: Tensor,
    group_size: usize,
}

/// A candidate grid, and the error of the weight that is rounded to it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Scales s and zero points z, `[m, groups]` each.
    pub grid: &'a Grid,
    /// The error E = W − Q of the rounded weight, `[m, n]`.
    pub error: &'a Tensor,
    /// E times the diagonal blocks of the hessian H, `[m, n]`; see
    /// [`grouped_product`](super::grouped_product::grouped_product).
    pub curved: &'a Tensor,
}

uniform! {
    struct Params of "clip" {
        n: u32,
        group_size: u32,
        groups: u32,
        count: u32,
        stride: u32,
    }
}

impl Best {
    /// Starts with `grid`, whose groups have `group_size` columns. Any candidate with a finite loss replaces it.
    pub fn new(rec: &mut Recorder, grid: Grid, group_size: usize) -> Result<Self> {
        let losses = rec.upload(grid.scales.shape(), vec![f32::MAX; grid.scales.len()])?;
        Ok(Self { grid, losses, group_size })
    }

    /// Takes the grid of `candidate` in each row and group where its loss is less than the best so far. The loss is the sum of
    /// `E ∘ (E·H)` over the row and group, with the diagonal block of H. Errors: `Error::Shape` if the shapes do not match.
    pub fn offer(&mut self, rec: &mut Recorder, candidate: Candidate<'_>) -> Result<()> {
        let Candidate { grid, error, curved } = candidate;
        let [m, n] = error.matrix("clip")?;
        curved.expect_shape("clip", &[m, n])?;
        if self.group_size == 0 {
            return Err(Error::shape("clip", "groups of no columns"));
        }
        let groups = n.div_ceil(self.group_size);
        for tensor in [&grid.scales, &grid.zeros, &self.grid.scales, &self.grid.zeros] {
            tensor.expect_shape("clip", &[m, groups])?;
        }
        if rec.is_gpu() {
            return self.offer_gpu(rec, candidate, [n, groups]);
        }
        if error.is_empty() {
            return Ok(());
        }
        let group_size = self.group_size;
        let best =
            self.losses.host_mut().par_chunks_mut(groups).zip(self.grid.scales.host_mut().par_chunks_mut(groups));
        let best = best.zip(self.grid.zeros.host_mut().par_chunks_mut(groups));
        let rows = error.host().par_chunks(n).zip(curved.host().par_chunks(n));
        let rows = rows.zip(grid.scales.host().par_chunks(groups).zip(grid.zeros.host().par_chunks(groups)));
        best.zip(rows).for_each(|(((losses, best_scales), best_zeros), ((e, c), (scales, zeros)))| {
            for (group, (e, c)) in e.chunks(group_size).zip(c.chunks(group_size)).enumerate() {
                let loss = vectorised(
                    #[inline(always)]
                    || sum(e, c, |e, c| e * c),
                ) as f32;
                if loss < losses[group] {
                    (losses[group], best_scales[group], best_zeros[group]) = (loss, scales[group], zeros[group]);
                }
            }
        });
        Ok(())
    }

    /// Dispatches [`Best::offer`] on a GPU.
    fn offer_gpu(&mut self, rec: &mut Recorder, candidate: Candidate<'_>, [n, groups]: [usize; 2]) -> Result<()> {
        let Candidate { grid, error, curved } = candidate;
        let count = grid.scales.len();
        let workgroups = spread(count);
        let params = Params {
            n: n as u32,
            group_size: self.group_size as u32,
            groups: groups as u32,
            count: count as u32,
            stride: workgroups[0] as u32,
        };
        rec.dispatch(Dispatch {
            kernel: "clip",
            params: bytemuck::bytes_of(&params),
            inputs: &[error.buffer(), curved.buffer(), grid.scales.buffer(), grid.zeros.buffer()],
            outputs: &[self.losses.buffer(), self.grid.scales.buffer(), self.grid.zeros.buffer()],
            workgroups,
            work: 2.0 * error.len() as f64,
        })
    }
}
