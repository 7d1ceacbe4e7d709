//! A product with the diagonal blocks of a square matrix: what each group of columns contributes to a quadratic form
//! when the others are left out.

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::{Error, Result};

/// Rows that one task of the twin computes.
const ROWS: usize = 96;
/// Rows and columns of the tile of a workgroup.
const TILE: usize = 64;

uniform! {
    struct Params of "grouped_product" {
        m: u32,
        n: u32,
        group_size: u32,
    }
}

/// `out[r, j] = Σ a[r, i]·b[i, j]` over the i that are in the same group as j.
///
/// `a`: `[m, n]`; `b`: `[n, n]`; groups of `group_size` consecutive columns, the last perhaps shorter. With one group this is
/// the plain product. Costs 2·m·n·`group_size` operations. Errors: `Error::Shape`.
pub fn grouped_product(rec: &mut Recorder, a: &Tensor, b: &Tensor, group_size: usize) -> Result<Tensor> {
    let [m, n] = a.matrix("grouped_product")?;
    b.expect_shape("grouped_product", &[n, n])?;
    if group_size == 0 {
        return Err(Error::shape("grouped_product", "groups of no columns"));
    }
    let mut out = rec.empty(&[m, n])?;
    if rec.is_gpu() {
        let params = Params { m: m as u32, n: n as u32, group_size: group_size.min(n) as u32 };
        // A tile computes with all groups that it touches.
        let depth = (group_size + TILE).min(n);
        rec.dispatch(Dispatch {
            kernel: "grouped_product",
            params: bytemuck::bytes_of(&params),
            inputs: &[a.buffer(), b.buffer()],
            outputs: &[out.buffer()],
            workgroups: [n.div_ceil(TILE), m.div_ceil(TILE), 1],
            work: 2.0 * m as f64 * n as f64 * depth as f64,
        })?;
        return Ok(out);
    }
    if out.is_empty() {
        return Ok(out);
    }
    let a = MatRef::from_row_major_slice(a.host(), m, n);
    let b = MatRef::from_row_major_slice(b.host(), n, n);
    out.host_mut().par_chunks_mut(ROWS * n).enumerate().for_each(|(piece, out)| {
        let count = out.len() / n;
        let a = a.subrows(piece * ROWS, count);
        let mut out = MatMut::from_row_major_slice_mut(out, count, n);
        for start in (0..n).step_by(group_size) {
            let width = group_size.min(n - start);
            let block = b.submatrix(start, start, width, width);
            let out = out.as_mut().subcols_mut(start, width);
            product(out, Accum::Replace, a.subcols(start, width), block, 1.0, Par::Seq);
        }
    });
    Ok(out)
}
