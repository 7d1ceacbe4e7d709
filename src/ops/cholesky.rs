//! The factor that both the correction and the column loop use: one Cholesky of the order-reversed Hessian.
//!
//! With P the processing order and J the flip, `J·P(H + λI)Pᵀ·J = M·Mᵀ`, M lower. Hence `P(H + λI)Pᵀ = R·Rᵀ` with
//! `R = J·M·J` upper, and `R⁻¹` is the factor that GPTQ gets from an inverse and two Choleskys.

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, Par, dyn_stack};
use rayon::prelude::*;

use crate::device::Recorder;
use crate::ops::gram::{self, Packed};
use crate::ops::not_written;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// `M` of a damped Hessian, for a processing order of its columns.
#[derive(Debug)]
pub struct Factor {
    /// Lower triangular; tiles on the diagonal hold zeros above it.
    m: Packed,
    /// `[n]`: processed column i is original column order[i].
    order: Tensor<u32>,
}

impl Factor {
    /// Rows, and columns, of the matrix.
    pub fn n(&self) -> usize {
        self.m.n()
    }

    /// The tiles of M.
    pub(crate) fn m(&self) -> &Packed {
        &self.m
    }

    /// `[n]`: processed column i is original column order[i].
    pub fn order(&self) -> &Tensor<u32> {
        &self.order
    }
}

/// Factors `H + λI` in the given order; `None` if a pivot is not positive and finite.
///
/// `order`: a permutation of 0..n; `ridge`: λ. A zero on the diagonal of H, an input that is never active, becomes 1
/// before λ is added; H itself stays as it is. Waits for the GPU. Errors: `Error::Shape` if `order` is no permutation.
pub async fn factor(rec: &mut Recorder, h: &Packed, order: &[u32], ridge: f32) -> Result<Option<Factor>> {
    check_order(order, h.n())?;
    let order_tensor = rec.upload(&[order.len()], order.to_vec())?;
    let mut m = Packed::empty(rec, h.n())?;
    if rec.is_gpu() {
        return Err(not_written(rec, "this op"));
    }
    let positive = factor_cpu(h, order, ridge, &mut m);
    Ok(positive.then_some(Factor { m, order: order_tensor }))
}

fn check_order(order: &[u32], n: usize) -> Result<()> {
    let mut seen = vec![false; n];
    let fresh = |&i: &u32| seen.get_mut(i as usize).is_some_and(|seen| !std::mem::replace(seen, true));
    if order.len() == n && order.iter().all(fresh) {
        return Ok(());
    }
    Err(Error::shape("cholesky", format!("an order of {} entries is no permutation of 0..{n}", order.len())))
}

/// The twin: a dense copy in the reversed order, factored in place. Says whether all pivots are positive.
fn factor_cpu(h: &Packed, order: &[u32], ridge: f32, m: &mut Packed) -> bool {
    let n = h.n();
    if n == 0 {
        return true;
    }
    let tiles = h.tiles().host();
    let reversed: Vec<usize> = order.iter().rev().map(|&i| i as usize).collect();
    // Column-major; only the lower triangle is set.
    let mut dense = vec![0.0f32; n * n];
    dense.par_chunks_mut(n).enumerate().for_each(|(c, column)| {
        let j = reversed[c];
        for (value, &i) in column[c..].iter_mut().zip(&reversed[c..]) {
            *value = tiles[gram::offset(i.max(j), i.min(j))];
        }
        let diagonal = &mut column[c];
        *diagonal = if *diagonal == 0.0 { 1.0 } else { *diagonal } + ridge;
    });
    let view = MatMut::from_column_major_slice_mut(&mut dense, n, n);
    let (parallel, settings) = (Par::rayon(0), Default::default());
    let mut memory = dyn_stack::MemBuffer::new(cholesky_in_place_scratch::<f32>(n, parallel, settings));
    let stack = dyn_stack::MemStack::new(&mut memory);
    let done = cholesky_in_place(view, LltRegularization::default(), parallel, stack, settings).is_ok();
    if !done || (0..n).any(|i| !positive_and_finite(dense[i * n + i])) {
        return false;
    }
    gram::fill_tiles(m.tiles_mut().host_mut(), n, |i, j| if j <= i { dense[j * n + i] } else { 0.0 });
    true
}

/// By the bits, as the shader tests it: not zero, no sign, exponent not all ones.
fn positive_and_finite(value: f32) -> bool {
    (1..0x7f80_0000).contains(&value.to_bits())
}

/// A slab of `Rn[j, i] = R[j, i] / R[i, i]`: columns i = start..start + count, rows j < start + count.
///
/// Returns `[start + count, count]`, row j and column c holding `Rn[j, start + c]`: exactly 1 on the diagonal, 0 below
/// it. Errors: `Error::Shape` if the range exceeds n.
pub fn normalised_columns(rec: &mut Recorder, factor: &Factor, start: usize, count: usize) -> Result<Tensor> {
    let n = factor.n();
    if start + count > n {
        return Err(Error::shape("normalised_columns", format!("columns {start}..{} of {n}", start + count)));
    }
    let mut slab = rec.empty(&[start + count, count])?;
    if rec.is_gpu() {
        return Err(not_written(rec, "this op"));
    }
    let tiles = factor.m.tiles().host();
    let element = |j: usize, i: usize| tiles[gram::offset(n - 1 - j, n - 1 - i)];
    let inverse: Vec<f32> = (start..start + count).map(|i| 1.0 / element(i, i)).collect();
    slab.host_mut().par_chunks_mut(count.max(1)).enumerate().with_min_len(16).for_each(|(j, row)| {
        for (c, value) in row.iter_mut().enumerate() {
            let i = start + c;
            *value = match j.cmp(&i) {
                std::cmp::Ordering::Less => element(j, i) * inverse[c],
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            };
        }
    });
    Ok(slab)
}
