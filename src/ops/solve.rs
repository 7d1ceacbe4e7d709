//! Solves with a factored Hessian, for the correction `W* = W + α·W·D·(H + λI)⁻¹`.

use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::Result;
use crate::device::Recorder;
use crate::ops::cholesky::Factor;
use crate::ops::gram;
use crate::ops::not_written;
use crate::tensor::Tensor;

/// `B·(H + λI)⁻¹`. `b`: `[m, n]`, its columns in the original order. Errors: `Error::Shape` if n differs.
pub fn solve_rows(rec: &mut Recorder, factor: &Factor, b: Tensor) -> Result<Tensor> {
    let [m, n] = b.matrix("solve_rows")?;
    b.expect_shape("solve_rows", &[m, factor.n()])?;
    if rec.is_gpu() {
        return Err(not_written(rec, "this op"));
    }
    let mut b = b;
    if m > 0 && n > 0 {
        solve_cpu(factor, b.host_mut());
    }
    Ok(b)
}

/// The twin. With F the order and the flip together, `B·(H + λI)⁻¹ = (B·Fᵀ)·M⁻ᵀ·M⁻¹·F`; rows of B are columns to faer.
fn solve_cpu(factor: &Factor, b: &mut [f32]) {
    let n = factor.n();
    let reversed: Vec<usize> = factor.order().host().iter().rev().map(|&i| i as usize).collect();
    let tiles = factor.m().tiles().host();
    let mut lower = vec![0.0f32; n * n];
    lower.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        for (j, piece) in row[..=i].chunks_mut(gram::TILE).enumerate() {
            let from = gram::offset(i, j * gram::TILE);
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
    solve_lower_triangular_in_place(lower, view.as_mut(), Par::rayon(0));
    solve_upper_triangular_in_place(lower.transpose(), view, Par::rayon(0));
    b.par_chunks_mut(n).zip(right.par_chunks(n)).for_each(|(b, right)| {
        for (value, &i) in right.iter().zip(&reversed) {
            b[i] = *value;
        }
    });
}
