//! Triangular solves with the Cholesky factor of the damped hessian, for the correction `W* = W + α·W·D·(H + λI)⁻¹` of QEP. The
//! shaders are `solve` and `solve_order`.

use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{MatMut, MatRef};
use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::cholesky::Factor;
use crate::ops::gram::{self, TILE};
use crate::ops::math::parallelism;
use crate::ops::spread_elements;

/// Returns `B·(H + λI)⁻¹`, `[m, n]`. `b`: `[m, n]`, with its columns in the original order. Errors: `Error::Shape` if the
/// factor has another extent than n.
pub fn solve_rows(rec: &mut Recorder, factor: &Factor, b: Tensor) -> Result<Tensor> {
    let [m, n] = b.matrix("solve_rows")?;
    b.expect_shape("solve_rows", &[m, factor.n()])?;
    if rec.is_gpu() {
        solve_gpu(rec, factor, &b)?;
        return Ok(b);
    }
    let mut b = b;
    if m > 0 && n > 0 {
        solve_cpu(factor, b.host_mut());
    }
    Ok(b)
}

uniform! {
    struct OrderParams of "solve_order" {
        n: u32,
        width: u32,
        count: u32,
        stride: u32,
    }
}

uniform! {
    struct Params of "solve" {
        m: u32,
        width: u32,
        tile: u32,
        first: u32,
        last: u32,
        finish: u32,
    }
}

/// Number of tile columns that are solved in one run. After a run, one large product updates all columns that are not solved yet.
const RUN: usize = 8;

/// Solves on a GPU: copies B with its columns in the order of M, runs two triangular solves on the copy, and writes the result
/// to B.
fn solve_gpu(rec: &mut Recorder, factor: &Factor, b: &Tensor) -> Result<()> {
    let (m, n) = (b.shape()[0], factor.n());
    let tiles = n.div_ceil(TILE);
    let y: Tensor = rec.empty(&[m, tiles * TILE])?;
    let (workgroups, stride) = spread_elements(y.len());
    let (width, count) = ((tiles * TILE) as u32, y.len() as u32);
    let params = OrderParams { n: n as u32, width, count, stride };
    let reorder = |rec: &mut Recorder, kernel, from: &Tensor, to: &Tensor| {
        rec.dispatch(Dispatch {
            kernel,
            params: bytemuck::bytes_of(&params),
            inputs: &[factor.order().buffer(), from.buffer()],
            outputs: &[to.buffer()],
            workgroups,
            work: 4.0 * y.len() as f64,
        })
    };
    reorder(rec, "solve_gather", b, &y)?;
    for run in (0..tiles).step_by(RUN) {
        let end = tiles.min(run + RUN);
        for tile in run..end {
            step(rec, "solve_forward", factor, &y, [tile, tile + 1], [run, tile], true)?;
        }
        step(rec, "solve_forward", factor, &y, [end, tiles], [run, end], false)?;
    }
    for run in (0..tiles).step_by(RUN).rev() {
        let end = tiles.min(run + RUN);
        for tile in (run..end).rev() {
            step(rec, "solve_backward", factor, &y, [tile, tile + 1], [tile + 1, end], true)?;
        }
        step(rec, "solve_backward", factor, &y, [0, run], [run, end], false)?;
    }
    reorder(rec, "solve_scatter", &y, b)
}

/// Subtracts the product of the solved tile columns `solved` with M from the tile columns `of`. If `finish`, it also solves the
/// tile columns `of`. Both are ranges: the first tile column, and the one after the last.
fn step(
    rec: &mut Recorder,
    kernel: &'static str,
    factor: &Factor,
    y: &Tensor,
    of: [usize; 2],
    solved: [usize; 2],
    finish: bool,
) -> Result<()> {
    let [m, width] = y.matrix("solve_rows")?;
    let [first, last] = solved.map(|tile| tile * TILE);
    let params = Params {
        m: m as u32,
        width: width as u32,
        tile: of[0] as u32,
        first: first as u32,
        last: last as u32,
        finish: u32::from(finish),
    };
    let depth = last - first + if finish { TILE } else { 0 };
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &[factor.m().tiles().buffer(), factor.inverse().buffer()],
        outputs: &[y.buffer()],
        workgroups: [of[1] - of[0], m.div_ceil(TILE), 1],
        work: 2.0 * m as f64 * ((of[1] - of[0]) * TILE * depth) as f64,
    })
}

/// The CPU twin. Let F be the permutation to the reversed processing order. Then `B·(H + λI)⁻¹ = (B·Fᵀ)·M⁻ᵀ·M⁻¹·F`. The rows of B
/// are passed to faer as columns.
fn solve_cpu(factor: &Factor, b: &mut [f32]) {
    let n = factor.n();
    let reversed: Vec<usize> = factor.order().host().iter().rev().map(|&i| i as usize).collect();
    let tiles = factor.m().tiles().host();
    let mut lower = vec![0.0f32; n * n];
    lower.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        for (j, piece) in row[..=i].chunks_mut(TILE).enumerate() {
            let from = gram::offset(i, j * TILE);
            piece.copy_from_slice(&tiles[from..from + piece.len()]);
        }
    });
    let rows = b.len() / n;
    let mut right = vec![0.0f32; b.len()];
    right.par_chunks_mut(n).zip(b.par_chunks(n)).for_each(|(right, b)| {
        for (value, &i) in right.iter_mut().zip(&reversed) {
            *value = b[i];
        }
    });
    let lower = MatRef::from_row_major_slice(&lower, n, n);
    let mut view = MatMut::from_column_major_slice_mut(&mut right, n, rows);
    solve_lower_triangular_in_place(lower, view.as_mut(), parallelism());
    solve_upper_triangular_in_place(lower.transpose(), view, parallelism());
    b.par_chunks_mut(n).zip(right.par_chunks(n)).for_each(|(b, right)| {
        for (value, &i) in right.iter().zip(&reversed) {
            b[i] = *value;
        }
    });
}
