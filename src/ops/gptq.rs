//! The column loop of GPTQ, without an inverse: `q_i = Q(w_i + Σ_{j<i} Rn[j, i]·d_j)`, `d_j = w_j − ŵ_j`.
//!
//! Everything here is laid out `[column][row]` in processing order. A block takes the columns in order; what earlier
//! blocks add to it is a matrix product and comes in through `t`.

use rayon::prelude::*;

use crate::device::Recorder;
use crate::ops::grid::Grid;
use crate::ops::{bounded, not_written};
use crate::tensor::{Element, Tensor};
use crate::{Error, Result};

/// Columns of a block at most.
pub const LONGEST_BLOCK: usize = 128;
/// Rows that the CPU twin takes at a time: their block of d stays in the first-level cache.
const LANES: usize = 64;

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
    if rec.is_gpu() {
        return Err(not_written(rec, "this op"));
    }
    let rows = block.start * m..(block.start + block.count) * m;
    let coefficients = transposed_corner(block.columns.host(), block.start, block.count);
    let d = strips(&mut d.host_mut()[rows.clone()], m);
    let codes = strips(&mut codes.host_mut()[rows], m);
    d.into_par_iter().zip(codes).enumerate().for_each(|(strip, (d, codes))| {
        pulp::Arch::new().dispatch(|| quantize_strip(&block, &coefficients, strip * LANES, d, codes));
    });
    Ok(())
}

/// The weights of a group as GPTQ has updated them by the time its first column is reached, `[count, m]`.
///
/// `x_c = (t_c − w_c) − Σ_{start ≤ b < c} x_b·Rn[b, c]`, and the result is `w_c + x_c`. `w`: `[n, m]`; `t`: `[count, m]`
/// as in [`Block`]; `columns`: `[start + count, count]`; the count is not bounded. Errors: `Error::Shape`.
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
        return Err(not_written(rec, "this op"));
    }
    let coefficients = transposed_corner(columns.host(), start, count);
    let w = &w.host()[start * m..(start + count) * m];
    strips(out.host_mut(), m).into_par_iter().enumerate().for_each(|(strip, out)| {
        pulp::Arch::new().dispatch(|| update_strip(w, t.host(), &coefficients, [m, strip * LANES], out));
    });
    Ok(out)
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

/// A matrix of m columns as strips of [`LANES`] columns, each a list of row pieces.
fn strips<T: Element>(matrix: &mut [T], m: usize) -> Vec<Vec<&mut [T]>> {
    let mut strips: Vec<Vec<&mut [T]>> = (0..m.div_ceil(LANES)).map(|_| Vec::new()).collect();
    for row in matrix.chunks_mut(m.max(1)) {
        for (strip, piece) in strips.iter_mut().zip(row.chunks_mut(LANES)) {
            strip.push(piece);
        }
    }
    strips
}

/// The twin for rows first..first + d[0].len().
#[inline(always)]
fn quantize_strip(
    block: &Block<'_>,
    coefficients: &[f32],
    first: usize,
    mut d: Vec<&mut [f32]>,
    mut codes: Vec<&mut [u32]>,
) {
    let m = block.w.shape()[1];
    let groups = block.grid.scales.shape()[1];
    let top = ((1u32 << block.bits) - 1) as f32;
    let mut errors = [[0.0f32; LANES]; LONGEST_BLOCK];
    // Rows beyond the last stay on this grid of one level.
    let (mut scale, mut inverse, mut zero) = ([1.0f32; LANES], [1.0f32; LANES], [0.0f32; LANES]);
    let mut group = u32::MAX;
    for c in 0..block.count {
        let column = block.start + c;
        let width = d[c].len();
        if block.group_of.host()[column] != group {
            group = block.group_of.host()[column];
            for lane in 0..width {
                let index = (first + lane) * groups + group as usize;
                scale[lane] = block.grid.scales.host()[index];
                zero[lane] = block.grid.zeros.host()[index];
                inverse[lane] = 1.0 / scale[lane];
            }
        }
        let mut sum = load(block.t.host(), c * m + first, width);
        add_products(&mut sum, &errors[..c], &coefficients[c * block.count..]);
        let w = load(block.w.host(), column * m + first, width);
        let mut levels = [0.0f32; LANES];
        for lane in 0..LANES {
            let level = bounded(sum[lane] * inverse[lane], -zero[lane], top - zero[lane]).round_ties_even();
            errors[c][lane] = w[lane] - scale[lane] * level;
            levels[lane] = level + zero[lane];
        }
        d[c].copy_from_slice(&errors[c][..width]);
        for (code, level) in codes[c].iter_mut().zip(levels) {
            *code = level as u32;
        }
    }
}

/// The twin of [`updated_group`] for columns first… of its `[count, m]` matrices.
#[inline(always)]
fn update_strip(w: &[f32], t: &[f32], coefficients: &[f32], [m, first]: [usize; 2], mut out: Vec<&mut [f32]>) {
    let count = out.len();
    // −x_c, so that the sum below adds.
    let mut negated = vec![[0.0f32; LANES]; count];
    for (c, out) in out.iter_mut().enumerate() {
        let width = out.len();
        let w = load(w, c * m + first, width);
        let t = load(t, c * m + first, width);
        let mut sum: [f32; LANES] = std::array::from_fn(|lane| t[lane] - w[lane]);
        add_products(&mut sum, &negated[..c], &coefficients[c * count..]);
        negated[c] = sum.map(|x| -x);
        for (lane, out) in out.iter_mut().enumerate() {
            *out = w[lane] + sum[lane];
        }
    }
}

/// `width` elements, then zeros.
#[inline(always)]
fn load(values: &[f32], from: usize, width: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..width].copy_from_slice(&values[from..from + width]);
    lanes
}

/// `sum += Σ_j coefficients[j]·rows[j]`.
#[inline(always)]
fn add_products(sum: &mut [f32; LANES], rows: &[[f32; LANES]], coefficients: &[f32]) {
    let mut local = *sum;
    for (row, &coefficient) in rows.iter().zip(coefficients) {
        for lane in 0..LANES {
            local[lane] = coefficient.mul_add(row[lane], local[lane]);
        }
    }
    *sum = local;
}
