//! What GPTQ leaves behind: it settles each code once, before it knows the later ones. Passes of coordinate descent over
//! all codes (QuantEase, arXiv 2309.01885) lower the same loss tr(E·(H + λI)·Eᵀ), E = W* − Q, on the same grid.

use crate::Result;
use crate::device::Recorder;
use crate::ops::add::add_scaled;
use crate::ops::dequantize::dequantize;
use crate::ops::descent::{Block, descend_block};
use crate::ops::gptq::LONGEST_BLOCK;
use crate::ops::gram::{self, Packed};
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::matmul::{Orientation, Rows, accumulate};
use crate::ops::permute::{from_columns, to_columns};
use crate::tensor::Tensor;

/// The passes to make, ready for all linears of a group.
#[derive(Debug)]
pub(super) struct Descent {
    /// H, dense.
    hessian: Tensor,
    ridge: f32,
    passes: usize,
    /// Columns as stored.
    order: Tensor<u32>,
}

impl Descent {
    /// `ridge`: λ, above 0; `passes`: over all columns.
    pub(super) fn new(rec: &mut Recorder, hessian: &Packed, ridge: f32, passes: usize) -> Result<Self> {
        let n = hessian.n();
        let order = rec.upload(&[n], (0..n as u32).collect())?;
        Ok(Self { hessian: gram::unpack(rec, hessian)?, ridge, passes, order })
    }

    /// Better codes for `weight`, W* `[m, n]`, starting from `codes` of the same shape.
    pub(super) fn descend(
        &self,
        rec: &mut Recorder,
        weight: &Tensor,
        codes: &Tensor<u32>,
        grid: &Grid,
        spec: &GridSpec,
    ) -> Result<Tensor<u32>> {
        let [m, n] = weight.matrix("descent")?;
        let mut errors = rec.duplicate(weight)?;
        let rounded = dequantize(rec, codes, grid, spec.group_size)?;
        add_scaled(rec, &mut errors, -1.0, &rounded)?;
        let mut errors = to_columns(rec, &errors, &self.order)?;
        let mut codes = to_columns(rec, codes, &self.order)?;
        for start in (0..self.passes).flat_map(|_| (0..n).step_by(LONGEST_BLOCK)) {
            let count = LONGEST_BLOCK.min(n - start);
            let mut g = rec.zeros(&[count, m])?;
            let rows = Rows { tensor: &self.hessian, start, count };
            accumulate(rec, Orientation::Nn, rows, Rows::all(&errors), &mut g, 0)?;
            let (hessian, ridge) = (&self.hessian, self.ridge);
            let (group_size, bits) = (spec.group_size, spec.bits);
            let block = Block { hessian, ridge, g: &g, grid, group_size, start, count, bits };
            descend_block(rec, block, &mut errors, &mut codes)?;
        }
        from_columns(rec, &codes, &self.order)
    }
}
