//! Matrix products in f32, in the three orientations that the pipeline needs. The shader is `matmul`. On a device with a fast
//! tier, large products are computed by `cooperative`.
//!
//! NT is the forward pass of a linear layer (`Y = X·Wᵀ`). NN multiplies a weight by the error correlation (`W·D`). TN sums outer
//! products over tokens (`δᵀ·X̂`), and computes the lazy update of GPTQ.

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::cooperative::{self, Operand, Output};
use crate::{Error, Result};

/// Which operands are transposed. The first letter stands for A and the second for B; N means not transposed, T means transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// `C = A·Bᵀ`, A `[m, k]`, B `[n, k]`.
    Nt,
    /// `C = A·B`, A `[m, k]`, B `[k, n]`.
    Nn,
    /// `C = Aᵀ·B`, A `[k, m]`, B `[k, n]`.
    Tn,
}

/// Consecutive rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The matrix.
    pub tensor: &'a Tensor,
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// All rows.
    pub fn all(tensor: &'a Tensor) -> Self {
        Self { tensor, start: 0, count: tensor.shape()[0] }
    }

    /// Returns the numbers of rows and columns. Errors: `Error::Shape` if the matrix does not have these rows.
    fn checked(self) -> Result<[usize; 2]> {
        let [rows, columns] = self.tensor.matrix("matmul")?;
        if self.start + self.count > rows {
            let detail = format!("rows {}..{} of a matrix of {rows}", self.start, self.start + self.count);
            return Err(Error::shape("matmul", detail));
        }
        Ok([self.count, columns])
    }

    /// Returns these rows as an operand for `cooperative`.
    fn rows(self, rows: usize, depth: usize) -> Operand<'a> {
        let stride = self.tensor.shape()[1];
        Operand { rows, depth, start: self.start * stride, ..cooperative::rows_of(self.tensor) }
    }

    /// Returns the columns of these rows as an operand for `cooperative`.
    fn columns(self, rows: usize, depth: usize) -> Operand<'a> {
        let stride = self.tensor.shape()[1];
        Operand { rows, depth, start: self.start * stride, ..cooperative::columns_of(self.tensor) }
    }

    /// Returns these rows of a matrix in host memory, as faer takes them.
    fn view(&self) -> MatRef<'a, f32> {
        let columns = self.tensor.shape()[1];
        let slice = &self.tensor.host()[self.start * columns..(self.start + self.count) * columns];
        MatRef::from_row_major_slice(slice, self.count, columns)
    }
}

uniform! {
    struct Params of "matmul" {
        m: u32,
        n: u32,
        k: u32,
        accumulate: u32,
        a_start: u32,
        b_start: u32,
        c_start: u32,
        a_stride: u32,
        b_stride: u32,
    }
}

/// Returns the product as a new matrix `[m, n]`. Errors: `Error::Shape` if the inner extents differ.
pub fn matmul(rec: &mut Recorder, orientation: Orientation, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [m, n, _] = extents(orientation, Rows::all(a), Rows::all(b))?;
    let mut c = rec.empty(&[m, n])?;
    run(rec, orientation, Rows::all(a), Rows::all(b), &mut c, 0, false)?;
    Ok(c)
}

/// Adds the product `[m, n]` to the rows `c_start..c_start + m` of `c`, a matrix with n columns.
///
/// Errors: `Error::Shape` if the extents do not match.
pub fn accumulate(
    rec: &mut Recorder,
    orientation: Orientation,
    a: Rows<'_>,
    b: Rows<'_>,
    c: &mut Tensor,
    c_start: usize,
) -> Result<()> {
    run(rec, orientation, a, b, c, c_start, true)
}

/// Multiplies the columns `first..first + k` of A by B and adds the product to C. `a`: `[m, n]`; `b`: `[k, width]`; `c`:
/// `[m, width]`.
///
/// Errors: `Error::Shape` if the extents do not match.
pub fn accumulate_columns(rec: &mut Recorder, a: &Tensor, first: usize, b: &Tensor, c: &mut Tensor) -> Result<()> {
    let ([m, columns], [k, width]) = (a.matrix("matmul")?, b.matrix("matmul")?);
    c.expect_shape("matmul", &[m, width])?;
    if first + k > columns {
        return Err(Error::shape("matmul", format!("columns {first}..{} of a matrix of {columns}", first + k)));
    }
    if !rec.is_gpu() {
        let view = MatRef::from_row_major_slice(a.host(), m, columns).subcols(first, k);
        let b = MatRef::from_row_major_slice(b.host(), k, width);
        cpu(Orientation::Nn, view, b, c.host_mut(), Accum::Add);
        return Ok(());
    }
    if let Some(shape) = rec.fast_shape([m, width, k]) {
        let out = Output { c: c.buffer(), start: 0, stride: width, accumulate: true };
        let left = Operand { depth: k, start: first, ..cooperative::rows_of(a) };
        return cooperative::product(rec, shape, left, cooperative::columns_of(b), &out);
    }
    let params = Params {
        m: m as u32,
        n: width as u32,
        k: k as u32,
        accumulate: 1,
        a_start: first as u32,
        b_start: 0,
        c_start: 0,
        a_stride: columns as u32,
        b_stride: width as u32,
    };
    dispatch(rec, Orientation::Nn, params, [a, b], c)
}

/// Returns m, n and k of a product. Errors: `Error::Shape` if the inner extents differ.
fn extents(orientation: Orientation, a: Rows<'_>, b: Rows<'_>) -> Result<[usize; 3]> {
    let ([a0, a1], [b0, b1]) = (a.checked()?, b.checked()?);
    let ((m, k), (n, k_b)) = match orientation {
        Orientation::Nt => ((a0, a1), (b0, b1)),
        Orientation::Nn => ((a0, a1), (b1, b0)),
        Orientation::Tn => ((a1, a0), (b1, b0)),
    };
    if k != k_b {
        return Err(Error::shape("matmul", format!("{orientation:?} of [{a0}, {a1}] and [{b0}, {b1}]")));
    }
    Ok([m, n, k])
}

/// Computes a product on the device of `rec`: adds it to the rows of `c` from `c_start` on if `accumulate`, otherwise replaces
/// them.
fn run(
    rec: &mut Recorder,
    orientation: Orientation,
    a: Rows<'_>,
    b: Rows<'_>,
    c: &mut Tensor,
    c_start: usize,
    accumulate: bool,
) -> Result<()> {
    let [m, n, k] = extents(orientation, a, b)?;
    let [c_rows, c_columns] = c.matrix("matmul")?;
    if c_columns != n || c_start + m > c_rows {
        return Err(Error::shape("matmul", format!("[{m}, {n}] into [{c_rows}, {c_columns}] at row {c_start}")));
    }
    if !rec.is_gpu() {
        let out = &mut c.host_mut()[c_start * n..(c_start + m) * n];
        cpu(orientation, a.view(), b.view(), out, if accumulate { Accum::Add } else { Accum::Replace });
        return Ok(());
    }
    if let Some(shape) = rec.fast_shape([m, n, k]) {
        let out = Output { c: c.buffer(), start: c_start * n, stride: n, accumulate };
        let left = if orientation == Orientation::Tn { a.columns(m, k) } else { a.rows(m, k) };
        let right = if orientation == Orientation::Nt { b.rows(n, k) } else { b.columns(n, k) };
        return cooperative::product(rec, shape, left, right, &out);
    }
    let (a_stride, b_stride) = (a.tensor.shape()[1], b.tensor.shape()[1]);
    let params = Params {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        accumulate: u32::from(accumulate),
        a_start: (a.start * a_stride) as u32,
        b_start: (b.start * b_stride) as u32,
        c_start: (c_start * n) as u32,
        a_stride: a_stride as u32,
        b_stride: b_stride as u32,
    };
    dispatch(rec, orientation, params, [a.tensor, b.tensor], c)
}

/// Dispatches the portable kernel.
fn dispatch(
    rec: &mut Recorder,
    orientation: Orientation,
    params: Params,
    [a, b]: [&Tensor; 2],
    c: &Tensor,
) -> Result<()> {
    let [m, n, k] = [params.m, params.n, params.k].map(|extent| extent as usize);
    rec.dispatch(Dispatch {
        kernel: match orientation {
            Orientation::Nt => "matmul_nt",
            Orientation::Nn => "matmul_nn",
            Orientation::Tn => "matmul_tn",
        },
        params: bytemuck::bytes_of(&params),
        inputs: &[a.buffer(), b.buffer()],
        outputs: &[c.buffer()],
        workgroups: [n.div_ceil(64), m.div_ceil(64), 1],
        work: 2.0 * m as f64 * n as f64 * k as f64,
    })
}

/// The CPU twin: replaces `c` by the product or adds the product to it, as `accum` says. `c`: `[m, n]`, row-major.
///
/// Each core gets several pieces of the rows of C, so that a slow core does not delay the others.
pub(crate) fn cpu(orientation: Orientation, a: MatRef<'_, f32>, b: MatRef<'_, f32>, c: &mut [f32], accum: Accum) {
    let a = if orientation == Orientation::Tn { a.transpose() } else { a };
    let b = if orientation == Orientation::Nt { b.transpose() } else { b };
    let (m, n) = (a.nrows(), b.ncols());
    let rows = m.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(96);
    c.par_chunks_mut((rows * n).max(1)).enumerate().for_each(|(piece, c)| {
        let count = rows.min(m - piece * rows);
        let c = MatMut::from_row_major_slice_mut(c, count, n);
        product(c, accum, a.subrows(piece * rows, count), b, 1.0, Par::Seq);
    });
}
