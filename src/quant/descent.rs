//! Passes of coordinate descent after GPTQ, over codes (QuantEase, arXiv 2309.01885) and scales.
//!
//! GPTQ chooses each code once, before it knows the later ones, and it chooses scales before any code. The passes lower its loss
//! tr(E·(H + λI)·Eᵀ), E = W* − Q.

use crate::Result;
use crate::device::{Recorder, Tensor};
use crate::ops::add::add_scaled;
use crate::ops::dequantize::dequantize;
use crate::ops::descent::{Block, descend_block};
use crate::ops::gptq::LONGEST_BLOCK;
use crate::ops::gram::{Packed, unpack_rows};
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::matmul::{Orientation, Rows, accumulate, matmul};
use crate::ops::permute::{from_columns, to_columns};
use crate::ops::refit::{Group, refit};

/// Rows of H that are unpacked at a time when scales are fitted.
pub(super) const UNPACKED_ROWS: usize = 1024;

/// Coordinate descent for the linears of one group.
#[derive(Debug)]
pub(super) struct Descent<'a> {
    hessian: &'a Packed,
    ridge: f32,
    passes: usize,
    /// The columns in stored order.
    order: Tensor<u32>,
}

impl<'a> Descent<'a> {
    /// `ridge`: λ, above 0. `passes`: how often to go over all columns.
    pub(super) fn new(rec: &mut Recorder, hessian: &'a Packed, ridge: f32, passes: usize) -> Result<Self> {
        let n = hessian.n();
        let order = rec.upload(&[n], (0..n as u32).collect())?;
        Ok(Self { hessian, ridge, passes, order })
    }

    /// Improves the rounding of `weight`, W* `[m, n]`, starting from `codes` of the same shape and the scales of `grid`. Changes
    /// the scales and offsets of `grid` and returns the new codes.
    pub(super) fn descend(
        &self,
        rec: &mut Recorder,
        weight: &Tensor,
        codes: &Tensor<u32>,
        grid: &mut Grid,
        spec: &GridSpec,
    ) -> Result<Tensor<u32>> {
        let mut errors = rec.duplicate(weight)?;
        let rounded = dequantize(rec, codes, grid, spec)?;
        add_scaled(rec, &mut errors, -1.0, &rounded)?;
        let mut linear = DescendingLinear {
            descent: self,
            spec,
            weight: to_columns(rec, weight, &self.order)?,
            errors: to_columns(rec, &errors, &self.order)?,
            codes: to_columns(rec, codes, &self.order)?,
        };
        let n = self.hessian.n();
        for start in (0..self.passes).flat_map(|_| (0..n).step_by(spec.group_size)) {
            let end = n.min(start + spec.group_size);
            for block in (start..end).step_by(LONGEST_BLOCK) {
                linear.move_codes(rec, block, LONGEST_BLOCK.min(end - block), grid)?;
            }
            linear.fit_scales(rec, start, end - start, grid)?;
        }
        from_columns(rec, &linear.codes, &self.order)
    }
}

/// A linear during the descent. All matrices are `[n, m]`, with the columns in stored order.
struct DescendingLinear<'a> {
    descent: &'a Descent<'a>,
    spec: &'a GridSpec,
    weight: Tensor,
    /// W* − Q.
    errors: Tensor,
    codes: Tensor<u32>,
}

impl DescendingLinear<'_> {
    /// Moves each code of `count` columns from `start` to the level of least loss, one column after the other.
    fn move_codes(&mut self, rec: &mut Recorder, start: usize, count: usize, grid: &Grid) -> Result<()> {
        let hessian = &unpack_rows(rec, self.descent.hessian, start, count)?;
        let g = matmul(rec, Orientation::Nn, hessian, &self.errors)?;
        let ridge = &self.descent.ridge;
        let block = Block { hessian, ridge: *ridge, g: &g, spec: self.spec, grid, start, count };
        descend_block(rec, block, &mut self.errors, &mut self.codes)
    }

    /// Fits the scales and offsets of the group of `count` columns from `start` to its codes.
    fn fit_scales(&mut self, rec: &mut Recorder, start: usize, count: usize, grid: &mut Grid) -> Result<()> {
        let mut rounded = rec.copy_rows(&self.weight, start, count)?;
        let errors = rec.copy_rows(&self.errors, start, count)?;
        add_scaled(rec, &mut rounded, -1.0, &errors)?;
        // g is H·E on the rows of the group. v is H·Ŵ, with Ŵ zero outside the group. H·1 is the same for a matrix of ones.
        let [n, m] = self.errors.matrix("descent")?;
        let (mut g, mut v) = (rec.zeros(&[count, m])?, rec.zeros(&[n, m])?);
        let mut ones = if self.spec.has_offsets() { Some(rec.zeros(&[n, 1])?) } else { None };
        for first in (0..count).step_by(UNPACKED_ROWS) {
            let piece = UNPACKED_ROWS.min(count - first);
            let rows = unpack_rows(rec, self.descent.hessian, start + first, piece)?;
            accumulate(rec, Orientation::Nn, Rows::all(&rows), Rows::all(&self.errors), &mut g, first)?;
            let rounded = Rows { tensor: &rounded, start: first, count: piece };
            accumulate(rec, Orientation::Tn, Rows::all(&rows), rounded, &mut v, 0)?;
            if let Some(ones) = &mut ones {
                let column = rec.upload(&[piece, 1], vec![1.0; piece])?;
                accumulate(rec, Orientation::Tn, Rows::all(&rows), Rows::all(&column), ones, 0)?;
            }
        }
        let (spec, codes, ridge, ones) = (self.spec, &self.codes, self.descent.ridge, ones.as_ref());
        refit(rec, Group { spec, codes, g: &g, v: &v, ones, ridge, start }, grid, &mut self.errors)
    }
}
