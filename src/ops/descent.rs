//! Coordinate descent over the codes, after GPTQ (QuantEase, arXiv 2309.01885). Each code in turn moves to the value with the
//! least loss, while all other codes stay. The shader is `descent`, and `quant::descent` runs the passes.
//!
//! Let e = w − ŵ and g = e·H. The loss of a row is e·(H + λI)·eᵀ. Over ŵ_c alone, it is least if ŵ_c grows by
//! `(g_c + λ·e_c) / (H_cc + λ)`. On a grid, the best level is the one nearest to this minimum. Errors and codes are `[n, m]`: the
//! columns of the weight, in stored order, along the first axis, and its rows along the second.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::code;
use crate::ops::gptq::LONGEST_BLOCK;
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::walk::{ColumnStep, LANES, Lanes, StripGrid, Walk, load, strips};
use crate::{Error, Result};

/// A block of columns whose codes may move, and the data of its loss.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Rows start..start + count of the hessian H, `[count, n]`.
    pub hessian: &'a Tensor,
    /// The damping λ. It must be positive if H has a zero on its diagonal.
    pub ridge: f32,
    /// Rows start..start + count of H·E, `[count, m]`.
    pub g: &'a Tensor,
    /// What the grid is.
    pub spec: &'a GridSpec,
    /// Scales, and zero points or offsets, `[m, groups]`.
    pub grid: &'a Grid,
    /// First column of the block.
    pub start: usize,
    /// Number of columns, at most [`LONGEST_BLOCK`].
    pub count: usize,
}

/// Moves the codes of a block, column by column. Each column takes the moves of the columns before it into account.
///
/// `errors`: E = W − Ŵ; `codes`: q; both `[n, m]`. Their rows start..start + count are changed. Errors: `Error::Shape` if the
/// shapes do not match, or if a field of `block` is out of range.
pub fn descend_block(rec: &mut Recorder, block: Block<'_>, errors: &mut Tensor, codes: &mut Tensor<u32>) -> Result<()> {
    let [n, m] = errors.matrix("descent")?;
    if block.start + block.count > n || block.count > LONGEST_BLOCK {
        return Err(Error::shape("descent", format!("{} columns from {} of {n}", block.count, block.start)));
    }
    if !block.spec.is_possible() {
        return Err(Error::shape("descent", format!("{:?}", block.spec)));
    }
    let groups = n.div_ceil(block.spec.group_size);
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
    // H is symmetric. So row c holds the coefficients for column c.
    let h = block.hessian.host().chunks(n.max(1));
    let coefficients: Vec<f32> = h.flat_map(|row| &row[block.start..block.start + block.count]).copied().collect();
    errors.into_par_iter().zip(codes).enumerate().for_each(|(strip, (errors, codes))| {
        let first = strip * LANES;
        let diagonal = coefficients.iter().step_by(block.count + 1).map(|h| h + block.ridge).collect();
        let step = Move { block: &block, strip_grid: StripGrid::new(block.spec), diagonal, first, errors, codes };
        pulp::Arch::new().dispatch(Walk { t: block.g.host(), coefficients: &coefficients, m, first, step });
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
        offsets: u32,
    }
}

/// Dispatches [`descend_block`] on a GPU.
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
        group_size: block.spec.group_size as u32,
        groups: groups as u32,
        top: block.spec.top(),
        ridge: block.ridge,
        offsets: u32::from(block.spec.has_offsets()),
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

/// The column step of the CPU twin: moves the codes of a strip of rows.
struct Move<'a> {
    block: &'a Block<'a>,
    strip_grid: StripGrid,
    /// H_cc + λ for each column of the block.
    diagonal: Vec<f32>,
    /// First row of the strip.
    first: usize,
    /// E of the strip, one slice per column of the block.
    errors: Vec<&'a mut [f32]>,
    /// The codes of the strip, one slice per column of the block.
    codes: Vec<&'a mut [u32]>,
}

impl ColumnStep for Move<'_> {
    #[inline(always)]
    fn finish_column(&mut self, c: usize, t: &Lanes) -> Lanes {
        let width = self.width();
        let group = (self.block.start + c) / self.block.spec.group_size;
        let strip_grid = &mut self.strip_grid;
        strip_grid.load(self.block.grid, group as u32, self.first, width);
        let mut errors = load(self.errors[c], 0, width);
        let (mut moves, mut codes) = ([0.0; LANES], [0u32; LANES]);
        codes[..width].copy_from_slice(self.codes[c]);
        for lane in 0..LANES {
            let old = codes[lane] as f32;
            let best = (t[lane] + self.block.ridge * errors[lane]) / self.diagonal[c];
            let new = strip_grid.code_of(strip_grid.value_of(old, lane) + best, lane);
            moves[lane] = strip_grid.scale[lane] * (old - new);
            errors[lane] += moves[lane];
            codes[lane] = code(new);
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
