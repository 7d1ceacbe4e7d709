//! The column loop of GPTQ, without an inverse: `q_i = Q(w_i + Σ_{j<i} Rn[j, i]·d_j)`, `d_j = w_j − ŵ_j`.
//!
//! Everything here is laid out `[column][row]` in processing order. A block takes the columns in order; what earlier
//! blocks add to it is a matrix product and comes in through `t`.

use rayon::prelude::*;

use crate::device::{Buffer, Dispatch, Recorder, Tensor};
use crate::ops::grid::Grid;
use crate::ops::walk::{LANES, Lanes, Levels, Settle, Walk, load, strips};
use crate::ops::{bounded, code};
use crate::{Error, Result};

/// Columns of a block at most.
pub const LONGEST_BLOCK: usize = 128;

/// What the columns of one block are rounded from, and to.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// `[n, m]`: the weights W*, in processing order.
    pub w: &'a Tensor,
    /// `[count, m]`: `w_c + Σ_{j<start} Rn[j, c]·d_j` for the columns of the block.
    pub t: &'a Tensor,
    /// `[start + count, count]`: of [`normalised_columns`](crate::ops::cholesky::normalised_columns).
    pub columns: &'a Tensor,
    /// Scales and zeros, `[m, groups]`.
    pub grid: &'a Grid,
    /// `[n]`: the group of each processed column.
    pub group_of: &'a Tensor<u32>,
    /// First column of the block.
    pub start: usize,
    /// Number of columns, at most [`LONGEST_BLOCK`].
    pub count: usize,
    /// Bits of a code, 1 to 8.
    pub bits: u32,
}

/// Rounds the columns of a block, each after the errors of those before it.
///
/// For c in order: `t_c += Σ_{j in block, j<c} Rn[j, c]·d_j`, `q_c` = t_c rounded to its grid, `d_c = w_c − s(q_c − z)`.
/// Writes rows start..start + count of `d` and `codes`, both `[n, m]`. Errors: `Error::Shape`.
pub fn quantize_block(rec: &mut Recorder, block: Block<'_>, d: &mut Tensor, codes: &mut Tensor<u32>) -> Result<()> {
    let [n, m] = block.w.matrix("gptq")?;
    check_slab("gptq", block.w, block.t, block.columns, block.start, block.count)?;
    if block.count > LONGEST_BLOCK || !(1..=8).contains(&block.bits) {
        return Err(Error::shape("gptq", format!("a block of {} columns of {} bits", block.count, block.bits)));
    }
    let [_, groups] = block.grid.scales.matrix("gptq")?;
    block.grid.scales.expect_shape("gptq", &[m, groups])?;
    block.grid.zeros.expect_shape("gptq", &[m, groups])?;
    block.group_of.expect_shape("gptq", &[n])?;
    d.expect_shape("gptq", &[n, m])?;
    codes.expect_shape("gptq", &[n, m])?;
    let range = block.start * m..(block.start + block.count) * m;
    if rec.is_gpu() {
        let grid = [block.grid.scales.buffer(), block.grid.zeros.buffer(), block.group_of.buffer()];
        let inputs = [&[block.w.buffer(), block.t.buffer(), block.columns.buffer()], &grid[..]].concat();
        return walk_gpu(rec, "gptq", &inputs, &[d.buffer(), codes.buffer()], Params::new(&block, m, groups));
    }
    let w = &block.w.host()[range.clone()];
    let coefficients = transposed_corner(block.columns.host(), block.start, block.count);
    let d = strips(&mut d.host_mut()[range.clone()], m);
    let codes = strips(&mut codes.host_mut()[range], m);
    d.into_par_iter().zip(codes).enumerate().for_each(|(strip, (d, codes))| {
        let (t, first) = (block.t.host(), strip * LANES);
        let settle = Quantize { block: &block, levels: Levels::default(), w, m, first, d, codes };
        pulp::Arch::new().dispatch(Walk { t, coefficients: &coefficients, m, first, settle });
    });
    Ok(())
}

/// The weights of a group as GPTQ has updated them by the time its first column is reached, `[count, m]`.
///
/// `x_c = (t_c − w_c) − Σ_{start ≤ b < c} x_b·Rn[b, c]`, and the result is `w_c + x_c`: the column loop with nothing
/// rounded. `w`: `[n, m]`; `t`: `[count, m]` as in [`Block`]; `columns`: `[start + count, count]`; any count.
///
/// Errors: `Error::Shape`.
pub fn updated_group(
    rec: &mut Recorder,
    w: &Tensor,
    t: &Tensor,
    columns: &Tensor,
    start: usize,
    count: usize,
) -> Result<Tensor> {
    check_slab("updated_group", w, t, columns, start, count)?;
    if start == 0 {
        // Nothing comes before: t is w.
        return rec.duplicate(t);
    }
    let m = w.shape()[1];
    let mut out = rec.empty(&[count, m])?;
    if rec.is_gpu() {
        let d: Tensor = rec.empty(&[count, m])?;
        let (inputs, outputs) = ([w.buffer(), t.buffer(), columns.buffer()], [d.buffer(), out.buffer()]);
        let params = Params { m: m as u32, start: start as u32, count: count as u32, groups: 0, top: 0.0 };
        walk_gpu(rec, "gptq_update", &inputs, &outputs, params)?;
        return Ok(out);
    }
    let coefficients = transposed_corner(columns.host(), start, count);
    let (w, t) = (&w.host()[start * m..(start + count) * m], t.host());
    strips(out.host_mut(), m).into_par_iter().enumerate().for_each(|(strip, out)| {
        let first = strip * LANES;
        let settle = Update { w, m, first, out };
        pulp::Arch::new().dispatch(Walk { t, coefficients: &coefficients, m, first, settle });
    });
    Ok(out)
}

uniform! {
    struct Params of "gptq" {
        m: u32,
        start: u32,
        count: u32,
        groups: u32,
        top: f32,
    }
}

impl Params {
    fn new(block: &Block<'_>, m: usize, groups: usize) -> Self {
        let (start, count) = (block.start as u32, block.count as u32);
        Self { m: m as u32, start, count, groups: groups as u32, top: ((1u32 << block.bits) - 1) as f32 }
    }
}

fn walk_gpu(
    rec: &mut Recorder,
    kernel: &'static str,
    inputs: &[&Buffer],
    outputs: &[&Buffer],
    params: Params,
) -> Result<()> {
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs,
        outputs,
        workgroups: [(params.m as usize).div_ceil(64), 1, 1],
        work: f64::from(params.m) * f64::from(params.count).powi(2),
    })
}

fn check_slab(op: &'static str, w: &Tensor, t: &Tensor, columns: &Tensor, start: usize, count: usize) -> Result<()> {
    let [n, m] = w.matrix(op)?;
    if start + count > n {
        return Err(Error::shape(op, format!("columns {start}..{} of {n}", start + count)));
    }
    t.expect_shape(op, &[count, m])?;
    columns.expect_shape(op, &[start + count, count])
}

/// `out[c·count + j] = Rn[start + j, start + c]`: what column c needs lies together.
fn transposed_corner(columns: &[f32], start: usize, count: usize) -> Vec<f32> {
    let corner = &columns[start * count..];
    (0..count * count).map(|i| corner[i % count * count + i / count]).collect()
}

/// Rounds, and stores d and the codes.
struct Quantize<'a> {
    block: &'a Block<'a>,
    levels: Levels,
    /// The block's weights, `[count, m]`.
    w: &'a [f32],
    m: usize,
    first: usize,
    d: Vec<&'a mut [f32]>,
    codes: Vec<&'a mut [u32]>,
}

impl Settle for Quantize<'_> {
    #[inline(always)]
    fn settle(&mut self, c: usize, t: &Lanes) -> Lanes {
        let width = self.width();
        let w = load(self.w, c * self.m + self.first, width);
        let block = self.block;
        let top = ((1u32 << block.bits) - 1) as f32;
        let levels = &mut self.levels;
        levels.load(block.grid, block.group_of.host()[block.start + c], self.first, width);
        let (mut errors, mut codes) = ([0.0; LANES], [0; LANES]);
        for lane in 0..LANES {
            let zero = levels.zero[lane];
            let level = bounded(t[lane] * levels.inverse[lane], -zero, top - zero).round_ties_even();
            errors[lane] = w[lane] - levels.scale[lane] * level;
            codes[lane] = code(level + zero);
        }
        self.d[c].copy_from_slice(&errors[..width]);
        self.codes[c].copy_from_slice(&codes[..width]);
        errors
    }

    #[inline(always)]
    fn width(&self) -> usize {
        self.d.first().map_or(0, |piece| piece.len())
    }
}

/// Rounds nothing, and stores t: then d is what GPTQ has changed so far, the other way round.
struct Update<'a> {
    /// The block's weights, `[count, m]`.
    w: &'a [f32],
    m: usize,
    first: usize,
    out: Vec<&'a mut [f32]>,
}

impl Settle for Update<'_> {
    #[inline(always)]
    fn settle(&mut self, c: usize, t: &Lanes) -> Lanes {
        let w = load(self.w, c * self.m + self.first, self.width());
        let out = &mut self.out[c];
        out.copy_from_slice(&t[..out.len()]);
        let mut errors = [0.0; LANES];
        for lane in 0..LANES {
            errors[lane] = w[lane] - t[lane];
        }
        errors
    }

    #[inline(always)]
    fn width(&self) -> usize {
        self.out.first().map_or(0, |piece| piece.len())
    }
}
