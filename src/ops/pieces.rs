//! A square matrix in pieces of consecutive rows, for matrices that are too large for one binding of the device. The error
//! correlation D of a wide layer takes gigabytes. This file has no shader; it calls `gram`, `matmul` and `add` for each piece.

use crate::device::{Recorder, Tensor};
use crate::ops::add;
use crate::ops::gram::{self, Packed, TILE};
use crate::ops::matmul::{Orientation, accumulate_columns, matmul};
use crate::{Error, Result};

/// An `[n, n]` matrix in pieces `[rows, n]`. All pieces but the last have the same number of rows.
#[derive(Debug)]
pub struct Pieces {
    n: usize,
    pieces: Vec<Tensor>,
}

/// Number of rows of a symmetric matrix that are unpacked at a time.
const UNPACKED_ROWS: usize = 2048;

impl Pieces {
    /// The zero matrix of extent n, in as few pieces as the device allows.
    pub fn zeros(rec: &mut Recorder, n: usize) -> Result<Self> {
        let fitting = (rec.device().largest_array() / (4 * n as u64).max(1)) as usize;
        Self::of_rows(rec, n, if fitting < n { (fitting / TILE * TILE).max(1) } else { n.max(1) })
    }

    /// The zero matrix of extent n, in pieces of `rows` rows.
    pub fn of_rows(rec: &mut Recorder, n: usize, rows: usize) -> Result<Self> {
        let starts = (0..n).step_by(rows);
        Ok(Self { n, pieces: starts.map(|start| rec.zeros(&[rows.min(n - start), n])).collect::<Result<_>>()? })
    }

    /// Takes a whole matrix as a single piece. Errors: `Error::Shape` if it is not square.
    pub fn whole(matrix: Tensor) -> Result<Self> {
        let [n, _] = matrix.matrix("pieces")?;
        matrix.expect_shape("pieces", &[n, n])?;
        Ok(Self { n, pieces: vec![matrix] })
    }

    /// Number of rows, and of columns, of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Yields the first row of each piece, and the piece.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        let rows = self.pieces.first().map_or(0, |piece| piece.shape()[0]);
        self.pieces.iter().enumerate().map(move |(index, piece)| (index * rows, piece))
    }

    /// `self += (X − X̂)ᵀX̂`, with one row for each channel of the error X − X̂. `x`, `x_hat`: `[tokens, n]`.
    ///
    /// Errors: `Error::Shape` if the shapes do not match.
    pub fn accumulate_cross(&mut self, rec: &mut Recorder, x: &Tensor, x_hat: &Tensor) -> Result<()> {
        let mut first = 0;
        for piece in &mut self.pieces {
            gram::cross(rec, x, x_hat, first, piece)?;
            first += piece.shape()[0];
        }
        Ok(())
    }

    /// `self += other`. Errors: `Error::Shape` if their pieces differ.
    pub fn add_assign(&mut self, rec: &mut Recorder, other: &Self) -> Result<()> {
        if self.pieces.len() != other.pieces.len() {
            return Err(Error::shape("pieces", format!("{} pieces and {}", self.pieces.len(), other.pieces.len())));
        }
        self.pieces.iter_mut().zip(&other.pieces).try_for_each(|(own, other)| add::add_assign(rec, own, other))
    }

    /// Returns `A·self`, `[m, n]`. `a`: `[m, n]`. Errors: `Error::Shape` if the shapes do not match.
    pub fn left_product(&self, rec: &mut Recorder, a: &Tensor) -> Result<Tensor> {
        if let [whole] = self.pieces.as_slice() {
            return matmul(rec, Orientation::Nn, a, whole);
        }
        let mut product = rec.zeros(a.shape())?;
        for (first, piece) in self.iter() {
            accumulate_columns(rec, a, first, piece, &mut product)?;
        }
        Ok(product)
    }
}

/// Returns `A·H`, `[m, n]`, for a symmetric H in packed storage. Only some rows of H are unpacked at a time. `a`: `[m, n]`.
///
/// Errors: `Error::Shape` if the shapes do not match.
pub fn symmetric_product(rec: &mut Recorder, a: &Tensor, h: &Packed) -> Result<Tensor> {
    let n = h.n();
    let mut product = rec.zeros(a.shape())?;
    for first in (0..n).step_by(UNPACKED_ROWS) {
        let rows = gram::unpack_rows(rec, h, first, UNPACKED_ROWS.min(n - first))?;
        accumulate_columns(rec, a, first, &rows, &mut product)?;
    }
    Ok(product)
}
