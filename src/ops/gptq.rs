//! The column loop of GPTQ within one block of columns: `q_i = Q(w_i + Σ_{j<i} Rn[j, i]·d_j)` with `d_j = w_j − ŵ_j`. The
//! shader is `gptq`, and `quant::column_loop` runs the blocks. QuIP's LDLQ uses the same loop.
//!
//! Rn is the normalised Cholesky factor of the damped hessian; see `cholesky`. No inverse is computed. Weights, errors and
//! codes are `[n, m]`: the columns of the weight, in processing order (act order or the stored order), along the first axis,
//! and its rows along the second. A block processes its columns in order. The terms of the columns in earlier blocks come from
//! one matrix product, and `t` contains them.

use rayon::prelude::*;

use crate::device::{Buffer, Dispatch, Recorder, Tensor};
use crate::ops::code;
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::walk::{ColumnStep, LANES, Lanes, StripGrid, Walk, load, strips};
use crate::{Error, Result};

/// The largest number of columns of a block.
pub const LONGEST_BLOCK: usize = 128;

/// A block of columns to be rounded, with its factor and its grid.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The corrected weight W* in processing order, `[n, m]`.
    pub w: &'a Tensor,
    /// `w_c + Σ_{j<start} Rn[j, c]·d_j` for the columns c of the block, `[count, m]`.
    pub t: &'a Tensor,
    /// The columns of Rn, `[start + count, count]`, from
    /// [`normalised_columns`](crate::ops::cholesky::normalised_columns).
    pub columns: &'a Tensor,
    /// What the grid is.
    pub spec: &'a GridSpec,
    /// Scales, and zero points or offsets, `[m, groups]`.
    pub grid: &'a Grid,
    /// Index of the group of each processed column, `[n]`.
    pub group_of: &'a Tensor<u32>,
    /// First column of the block, in processing order.
    pub start: usize,
    /// Number of columns, at most [`LONGEST_BLOCK`].
    pub count: usize,
}

/// Rounds the columns of a block in order. Each column first takes up the errors of the columns before it.
///
/// For each column c: `t_c += Σ_{j in block, j<c} Rn[j, c]·d_j`; `q_c` is t_c rounded to its grid; `d_c = w_c − ŵ_c`.
/// Writes rows start..start + count of `d` and `codes`, both `[n, m]`. Errors: `Error::Shape` if the shapes do not match, or if
/// a field of `block` is out of range.
pub fn quantize_block(rec: &mut Recorder, block: Block<'_>, d: &mut Tensor, codes: &mut Tensor<u32>) -> Result<()> {
    let [n, m] = block.w.matrix("gptq")?;
    check_slab("gptq", block.w, block.t, block.columns, block.start, block.count)?;
    if block.count > LONGEST_BLOCK || !block.spec.is_possible() {
        return Err(Error::shape("gptq", format!("a block of {} columns on {:?}", block.count, block.spec)));
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
        let step = Quantize { block: &block, strip_grid: StripGrid::new(block.spec), w, m, first, d, codes };
        pulp::Arch::new().dispatch(Walk { t, coefficients: &coefficients, m, first, step });
    });
    Ok(())
}

/// Returns the weights of a group as GPTQ has updated them when it reaches the first column of the group, `[count, m]`. The
/// grid of the group is chosen from these weights.
///
/// This is the column loop without rounding: `x_c = (t_c − w_c) − Σ_{start ≤ b < c} x_b·Rn[b, c]`, and the result is `w_c + x_c`.
/// `w`: `[n, m]`; `t`: `[count, m]`, as in [`Block`]; `columns`: `[start + count, count]`, as in [`Block`]. `count` may exceed
/// [`LONGEST_BLOCK`].
///
/// Errors: `Error::Shape` if the shapes do not match.
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
        // There are no earlier columns, so t is w.
        return rec.duplicate(t);
    }
    let m = w.shape()[1];
    let mut out = rec.empty(&[count, m])?;
    if rec.is_gpu() {
        let d: Tensor = rec.empty(&[count, m])?;
        let (inputs, outputs) = ([w.buffer(), t.buffer(), columns.buffer()], [d.buffer(), out.buffer()]);
        let params = Params { m: m as u32, start: start as u32, count: count as u32, groups: 0, top: 0.0, offsets: 0 };
        walk_gpu(rec, "gptq_update", &inputs, &outputs, params)?;
        return Ok(out);
    }
    let coefficients = transposed_corner(columns.host(), start, count);
    let (w, t) = (&w.host()[start * m..(start + count) * m], t.host());
    strips(out.host_mut(), m).into_par_iter().enumerate().for_each(|(strip, out)| {
        let first = strip * LANES;
        let step = Update { w, m, first, out };
        pulp::Arch::new().dispatch(Walk { t, coefficients: &coefficients, m, first, step });
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
        offsets: u32,
    }
}

impl Params {
    fn new(block: &Block<'_>, m: usize, groups: usize) -> Self {
        Self {
            m: m as u32,
            start: block.start as u32,
            count: block.count as u32,
            groups: groups as u32,
            top: block.spec.top(),
            offsets: u32::from(block.spec.has_offsets()),
        }
    }
}

/// Dispatches the column loop on a GPU.
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

/// Errors: `Error::Shape` if the columns start..start + count do not exist, or if `t` or `columns` has another shape than they
/// need.
fn check_slab(op: &'static str, w: &Tensor, t: &Tensor, columns: &Tensor, start: usize, count: usize) -> Result<()> {
    let [n, m] = w.matrix(op)?;
    if start + count > n {
        return Err(Error::shape(op, format!("columns {start}..{} of {n}", start + count)));
    }
    t.expect_shape(op, &[count, m])?;
    columns.expect_shape(op, &[start + count, count])
}

/// Returns the coefficients within the block, transposed so that those for one column are contiguous:
/// `out[c·count + j] = Rn[start + j, start + c]`.
fn transposed_corner(columns: &[f32], start: usize, count: usize) -> Vec<f32> {
    let corner = &columns[start * count..];
    (0..count * count).map(|i| corner[i % count * count + i / count]).collect()
}

/// The column step of [`quantize_block`] on the CPU: rounds a column, and stores d and the codes.
struct Quantize<'a> {
    block: &'a Block<'a>,
    strip_grid: StripGrid,
    /// The weights of the block, `[count, m]`.
    w: &'a [f32],
    m: usize,
    /// First row of the strip.
    first: usize,
    /// d of the strip, one slice per column of the block.
    d: Vec<&'a mut [f32]>,
    /// The codes of the strip, one slice per column of the block.
    codes: Vec<&'a mut [u32]>,
}

impl ColumnStep for Quantize<'_> {
    #[inline(always)]
    fn finish_column(&mut self, c: usize, t: &Lanes) -> Lanes {
        let width = self.width();
        let w = load(self.w, c * self.m + self.first, width);
        let block = self.block;
        let strip_grid = &mut self.strip_grid;
        strip_grid.load(block.grid, block.group_of.host()[block.start + c], self.first, width);
        let (mut errors, mut codes) = ([0.0; LANES], [0; LANES]);
        for lane in 0..LANES {
            let nearest = strip_grid.code_of(t[lane], lane);
            errors[lane] = w[lane] - strip_grid.value_of(nearest, lane);
            codes[lane] = code(nearest);
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

/// The column step of [`updated_group`] on the CPU: rounds nothing and stores t. Then d = w − t is the change of the weight by
/// GPTQ so far, with the opposite sign.
struct Update<'a> {
    /// The weights of the block, `[count, m]`.
    w: &'a [f32],
    m: usize,
    /// First row of the strip.
    first: usize,
    /// The updated weights of the strip, one slice per column of the block.
    out: Vec<&'a mut [f32]>,
}

impl ColumnStep for Update<'_> {
    #[inline(always)]
    fn finish_column(&mut self, c: usize, t: &Lanes) -> Lanes {
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
