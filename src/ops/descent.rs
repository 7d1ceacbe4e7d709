//! Coordinate descent over codes (QuantEase, arXiv 2309.01885): each moves to the best level while all others stand.
//!
//! With e = w − ŵ and g = e·H, the loss e·(H + λI)·eᵀ of a row is least where ŵ_c grows by `(g_c + λ·e_c) / (H_cc + λ)`, and on
//! a grid at the level nearest to that. Everything here is laid out `[column][row]`, columns as stored.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::gptq::LONGEST_BLOCK;
use crate::ops::grid::Grid;
use crate::ops::walk::{LANES, Lanes, Levels, Settle, Walk, load, strips};
use crate::ops::{bounded, code};
use crate::{Error, Result};

/// The columns whose codes may move, and what they are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Rows start..start + count of H, `[count, n]`.
    pub hessian: &'a Tensor,
    /// λ, positive where H has a zero on its diagonal.
    pub ridge: f32,
    /// `[count, m]`: rows start..start + count of H·E.
    pub g: &'a Tensor,
    /// Scales and zeros, `[m, groups]`.
    pub grid: &'a Grid,
    /// Columns of a group, the last of which may have fewer.
    pub group_size: usize,
    /// First column of the block.
    pub start: usize,
    /// Number of columns, at most [`LONGEST_BLOCK`].
    pub count: usize,
    /// Bits of a code, 1 to 8.
    pub bits: u32,
}

/// Moves the codes of a block, column by column, each with the moves before it taken into account.
///
/// Changes rows start..start + count of `errors`, w − ŵ, and `codes`, both `[n, m]`. Errors: `Error::Shape`.
pub fn descend_block(rec: &mut Recorder, block: Block<'_>, errors: &mut Tensor, codes: &mut Tensor<u32>) -> Result<()> {
    let [n, m] = errors.matrix("descent")?;
    if block.start + block.count > n || block.count > LONGEST_BLOCK {
        return Err(Error::shape("descent", format!("{} columns from {} of {n}", block.count, block.start)));
    }
    if block.group_size == 0 || !(1..=8).contains(&block.bits) {
        return Err(Error::shape("descent", format!("{} bits in groups of {} columns", block.bits, block.group_size)));
    }
    let groups = n.div_ceil(block.group_size);
    block.hessian.expect_shape("descent", &[block.count, n])?;
    block.g.expect_shape("descent", &[block.count, m])?;
    block.grid.scales.expect_shape("descent", &[m, groups])?;
    block.grid.zeros.expect_shape("descent", &[m, groups])?;
    codes.expect_shape("descent", &[n, m])?;
    if rec.is_gpu() {
        return descend_gpu(rec, &block, [n, m, groups], errors, codes);
    }
    let range = block.start * m..(block.start + block.count) * m;
    let errors = strips(&mut errors.host_mut()[range.clone()], m);
    let codes = strips(&mut codes.host_mut()[range], m);
    // H is symmetric: what column c needs is row c.
    let h = block.hessian.host().chunks(n.max(1));
    let coefficients: Vec<f32> = h.flat_map(|row| &row[block.start..block.start + block.count]).copied().collect();
    errors.into_par_iter().zip(codes).enumerate().for_each(|(strip, (errors, codes))| {
        let first = strip * LANES;
        let diagonal = coefficients.iter().step_by(block.count + 1).map(|h| h + block.ridge).collect();
        let settle = Move { block: &block, levels: Levels::default(), diagonal, first, errors, codes };
        pulp::Arch::new().dispatch(Walk { t: block.g.host(), coefficients: &coefficients, m, first, settle });
    });
    Ok(())
}

uniform! {
    struct Params of "descent" {
        m: u32,
        n: u32,
        start: u32,
        count: u32,
        group_size: u32,
        groups: u32,
        top: f32,
        ridge: f32,
    }
}

fn descend_gpu(
    rec: &mut Recorder,
    block: &Block<'_>,
    [n, m, groups]: [usize; 3],
    errors: &Tensor,
    codes: &Tensor<u32>,
) -> Result<()> {
    let moves: Tensor = rec.empty(&[block.count, m])?;
    let params = Params {
        m: m as u32,
        n: n as u32,
        start: block.start as u32,
        count: block.count as u32,
        group_size: block.group_size as u32,
        groups: groups as u32,
        top: ((1u32 << block.bits) - 1) as f32,
        ridge: block.ridge,
    };
    let grid = [block.grid.scales.buffer(), block.grid.zeros.buffer()];
    rec.dispatch(Dispatch {
        kernel: "descent",
        params: bytemuck::bytes_of(&params),
        inputs: &[block.hessian.buffer(), block.g.buffer(), grid[0], grid[1]],
        outputs: &[errors.buffer(), codes.buffer(), moves.buffer()],
        workgroups: [m.div_ceil(64), 1, 1],
        work: m as f64 * (block.count as f64).powi(2),
    })
}

/// Moves the codes of a strip of rows.
struct Move<'a> {
    block: &'a Block<'a>,
    levels: Levels,
    /// H_cc + λ of the block's columns.
    diagonal: Vec<f32>,
    first: usize,
    errors: Vec<&'a mut [f32]>,
    codes: Vec<&'a mut [u32]>,
}

impl Settle for Move<'_> {
    #[inline(always)]
    fn settle(&mut self, c: usize, t: &Lanes) -> Lanes {
        let width = self.width();
        let top = ((1u32 << self.block.bits) - 1) as f32;
        let group = (self.block.start + c) / self.block.group_size;
        let levels = &mut self.levels;
        levels.load(self.block.grid, group as u32, self.first, width);
        let mut errors = load(self.errors[c], 0, width);
        let (mut moves, mut codes) = ([0.0; LANES], [0u32; LANES]);
        codes[..width].copy_from_slice(self.codes[c]);
        for lane in 0..LANES {
            let (scale, zero) = (levels.scale[lane], levels.zero[lane]);
            let old = codes[lane] as f32 - zero;
            let best = (t[lane] + self.block.ridge * errors[lane]) / self.diagonal[c];
            let nearest = (scale * old + best) * levels.inverse[lane];
            let new = bounded(nearest, -zero, top - zero).round_ties_even();
            moves[lane] = scale * (old - new);
            errors[lane] += moves[lane];
            codes[lane] = code(new + zero);
        }
        self.errors[c].copy_from_slice(&errors[..width]);
        self.codes[c].copy_from_slice(&codes[..width]);
        moves
    }

    #[inline(always)]
    fn width(&self) -> usize {
        self.errors.first().map_or(0, |piece| piece.len())
    }
}
