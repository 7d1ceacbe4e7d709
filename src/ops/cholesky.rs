//! The Cholesky factor of the damped hessian in reversed processing order. The correction of QEP (`solve`) and the column loop of
//! GPTQ (`gptq`) both work with this factor. The shaders are `cholesky_gather`, `cholesky_diagonal`, `cholesky_panel`,
//! `cholesky_trailing` and `cholesky_columns`.
//!
//! Let P be the permutation to the processing order (act order or the stored order), and J the reversal. Then
//! `J·P(H + λI)Pᵀ·J = M·Mᵀ` with M lower triangular. Hence `P(H + λI)Pᵀ = R·Rᵀ` with `R = J·M·J` upper triangular. The GPTQ
//! paper computes `R⁻¹` with an inverse and two Cholesky factorisations. With R itself, one factorisation is enough.

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, dyn_stack};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::gram::{self, Packed, TILE};
use crate::ops::math::parallelism;
use crate::ops::{spread, spread_elements};
use crate::{Error, Result};

/// The factor M of a damped hessian, for a processing order of its columns.
#[derive(Debug)]
pub struct Factor {
    /// M, lower triangular. Tiles on the diagonal have zeros above the diagonal. On a GPU, M is the identity beyond row n.
    m: Packed,
    /// On a GPU: the inverse of each tile on the diagonal, `[tile rows, 4096]`. On the CPU it is empty.
    inverse: Tensor,
    /// `[n]`: processed column i is original column `order[i]`.
    order: Tensor<u32>,
}

impl Factor {
    /// Number of rows, and of columns.
    pub fn n(&self) -> usize {
        self.m.n()
    }

    /// The tiles of M.
    pub(crate) fn m(&self) -> &Packed {
        &self.m
    }

    /// On a GPU: the inverses of the tiles on the diagonal, `[tile rows, 4096]`.
    pub(crate) fn inverse(&self) -> &Tensor {
        &self.inverse
    }

    /// `[n]`: processed column i is original column `order[i]`.
    pub fn order(&self) -> &Tensor<u32> {
        &self.order
    }
}

/// Factors `H + λI` with its columns in the given order. Returns `None` if a pivot is not positive and finite.
///
/// `order`: a permutation of 0..n, where processed column i is original column `order[i]`; `ridge`: λ. A zero on the diagonal
/// of H belongs to an input that is never active. The factorisation replaces it by 1 before it adds λ. H itself is not changed.
/// Waits for the GPU. Errors: `Error::Shape` if `order` is not a permutation.
pub async fn factor(rec: &mut Recorder, h: &Packed, order: &[u32], ridge: f32) -> Result<Option<Factor>> {
    check_order(order, h.n())?;
    let tile_rows = if rec.is_gpu() { h.n().div_ceil(TILE) } else { 0 };
    let inverse = rec.empty(&[tile_rows, gram::AREA])?;
    let order_tensor = rec.upload(&[order.len()], order.to_vec())?;
    let mut factor = Factor { m: Packed::empty(rec, h.n())?, inverse, order: order_tensor };
    let positive = if rec.is_gpu() {
        factor_gpu(rec, h, ridge, &factor).await?
    } else {
        factor_cpu(h, order, ridge, &mut factor.m)
    };
    Ok(positive.then_some(factor))
}

/// Errors: `Error::Shape` if `order` is not a permutation of 0..n.
fn check_order(order: &[u32], n: usize) -> Result<()> {
    let mut seen = vec![false; n];
    let fresh = |&i: &u32| seen.get_mut(i as usize).is_some_and(|seen| !std::mem::replace(seen, true));
    if order.len() == n && order.iter().all(fresh) {
        return Ok(());
    }
    Err(Error::shape("cholesky", format!("an order of {} entries is no permutation of 0..{n}", order.len())))
}

uniform! {
    struct GatherParams of "cholesky_gather" {
        n: u32,
        count: u32,
        stride: u32,
        ridge: f32,
    }
}

uniform! {
    struct TileParams of "cholesky_diagonal", "cholesky_panel" {
        tile: u32,
    }
}

uniform! {
    struct TrailingParams of "cholesky_trailing" {
        tile: u32,
        tiles: u32,
        stride: u32,
    }
}

/// Factors on a GPU: a right-looking factorisation, tile column by tile column. Returns whether all pivots are positive and
/// finite.
async fn factor_gpu(rec: &mut Recorder, h: &Packed, ridge: f32, factor: &Factor) -> Result<bool> {
    let failed: Tensor<u32> = rec.zeros(&[1])?;
    let (m, inverse) = (factor.m.tiles().buffer(), factor.inverse.buffer());
    let count = factor.m.tiles().len();
    let (workgroups, stride) = spread_elements(count);
    let params = GatherParams { n: h.n() as u32, count: count as u32, stride, ridge };
    rec.dispatch(Dispatch {
        kernel: "cholesky_gather",
        params: bytemuck::bytes_of(&params),
        inputs: &[h.tiles().buffer(), factor.order.buffer()],
        outputs: &[m],
        workgroups,
        work: 4.0 * count as f64,
    })?;
    let tile_rows = h.n().div_ceil(TILE);
    let tile_work = 2.0 * (TILE * gram::AREA) as f64;
    for tile in 0..tile_rows {
        let below = tile_rows - tile - 1;
        let tiles = gram::tile_count(below * TILE);
        let workgroups = spread(tiles);
        let params = TileParams { tile: tile as u32 };
        let params = bytemuck::bytes_of(&params);
        let (outputs, work) = (&[m, inverse, failed.buffer()], tile_work);
        let kernel = "cholesky_diagonal";
        rec.dispatch(Dispatch { kernel, params, inputs: &[], outputs, workgroups: [1, 1, 1], work })?;
        let (kernel, work) = ("cholesky_panel", tile_work * below as f64);
        rec.dispatch(Dispatch { kernel, params, inputs: &[inverse], outputs: &[m], workgroups: [below, 1, 1], work })?;
        let (kernel, work) = ("cholesky_trailing", tile_work * tiles as f64);
        let params = TrailingParams { tile: tile as u32, tiles: tiles as u32, stride: workgroups[0] as u32 };
        let params = bytemuck::bytes_of(&params);
        rec.dispatch(Dispatch { kernel, params, inputs: &[], outputs: &[m], workgroups, work })?;
    }
    Ok(rec.read(&failed).await? == [0])
}

/// The CPU twin: makes a dense copy in the reversed order and factors it in place. Returns whether all pivots are positive and
/// finite.
fn factor_cpu(h: &Packed, order: &[u32], ridge: f32, m: &mut Packed) -> bool {
    let n = h.n();
    if n == 0 {
        return true;
    }
    let tiles = h.tiles().host();
    let reversed: Vec<usize> = order.iter().rev().map(|&i| i as usize).collect();
    // The copy is column-major, and only its lower triangle is set.
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
    let (parallel, settings) = (parallelism(), Default::default());
    let mut memory = dyn_stack::MemBuffer::new(cholesky_in_place_scratch::<f32>(n, parallel, settings));
    let stack = dyn_stack::MemStack::new(&mut memory);
    let done = cholesky_in_place(view, LltRegularization::default(), parallel, stack, settings).is_ok();
    if !done || (0..n).any(|i| !positive_and_finite(dense[i * n + i])) {
        return false;
    }
    gram::fill_tiles(m.tiles_mut().host_mut(), n, |i, j| if j <= i { dense[j * n + i] } else { 0.0 });
    true
}

/// Tests the bits, as the shader does: the value is not zero, has no sign, and its exponent is not all ones.
fn positive_and_finite(value: f32) -> bool {
    (1..0x7f80_0000).contains(&value.to_bits())
}

/// Computes columns of the normalised factor `Rn[j, i] = R[j, i] / R[i, i]`, for the columns i = start..start + count and the
/// rows j < start + count.
///
/// Returns `[start + count, count]`, where row j and column c hold `Rn[j, start + c]`. The elements are exactly 1 on the diagonal
/// and 0 below it. Errors: `Error::Shape` if the range exceeds n.
pub fn normalised_columns(rec: &mut Recorder, factor: &Factor, start: usize, count: usize) -> Result<Tensor> {
    let n = factor.n();
    if start + count > n {
        return Err(Error::shape("normalised_columns", format!("columns {start}..{} of {n}", start + count)));
    }
    let mut slab = rec.empty(&[start + count, count])?;
    if rec.is_gpu() {
        columns_gpu(rec, factor, start, &slab)?;
        return Ok(slab);
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

uniform! {
    struct ColumnsParams of "cholesky_columns" {
        n: u32,
        start: u32,
        count: u32,
        elements: u32,
        stride: u32,
    }
}

/// Dispatches [`normalised_columns`] on a GPU.
fn columns_gpu(rec: &mut Recorder, factor: &Factor, start: usize, slab: &Tensor) -> Result<()> {
    let (workgroups, stride) = spread_elements(slab.len());
    let params = ColumnsParams {
        n: factor.n() as u32,
        start: start as u32,
        count: slab.shape()[1] as u32,
        elements: slab.len() as u32,
        stride,
    };
    rec.dispatch(Dispatch {
        kernel: "cholesky_columns",
        params: bytemuck::bytes_of(&params),
        inputs: &[factor.m.tiles().buffer()],
        outputs: &[slab.buffer()],
        workgroups,
        work: 4.0 * slab.len() as f64,
    })
}
