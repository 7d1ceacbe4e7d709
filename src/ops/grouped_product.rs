//! The product of a matrix with the diagonal blocks of a square matrix. AWQ multiplies the error E of a weight by the diagonal
//! blocks of the hessian. This gives the output error of each group of columns, without the terms between groups. The shader is
//! `grouped_product`.

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::{Error, Result};

/// Number of rows that one task of the CPU twin computes.
const ROWS: usize = 96;
/// Number of rows, and of columns, of the tile that one workgroup computes.
const TILE: usize = 64;

uniform! {
    struct Params of "grouped_product" {
        m: u32,
        n: u32,
        group_size: u32,
    }
}

/// Computes `out[r, j] = Σ a[r, i]·b[i, j]`, where i runs over the columns in the group of j.
///
/// `a`: `[m, n]`; `b`: `[n, n]`; `group_size`: columns per group, of which the last group may have fewer. The result is
/// `[m, n]`. With a single group this is the plain product. It costs 2·m·n·`group_size` operations. Errors: `Error::Shape` if
/// the shapes do not match or the group size is 0.
pub fn grouped_product(rec: &mut Recorder, a: &Tensor, b: &Tensor, group_size: usize) -> Result<Tensor> {
    let [m, n] = a.matrix("grouped_product")?;
    b.expect_shape("grouped_product", &[n, n])?;
    if group_size == 0 {
        return Err(Error::shape("grouped_product", "groups of no columns"));
    }
    let mut out = rec.empty(&[m, n])?;
    if rec.is_gpu() {
        let params = Params { m: m as u32, n: n as u32, group_size: group_size.min(n) as u32 };
        // The depth of a tile covers all groups that the tile touches.
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
