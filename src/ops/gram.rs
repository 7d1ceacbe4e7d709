//! Sums over calibration tokens: the hessian `H = X̂ᵀX̂` of a layer, and its error correlation `D = (X − X̂)ᵀX̂`. The shaders are
//! `gram` and `packed`. On a device with a fast tier, large sums are computed by `cooperative`.
//!
//! Here the rows of X and X̂ are tokens. A symmetric matrix is in packed storage: only the tiles of its lower triangle are
//! stored. This takes half the memory of a dense matrix, so that the hessian of a wide layer still fits one storage binding.

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Buffer, Dispatch, FastShape, Recorder, Tensor};
use crate::ops::add;
use crate::ops::cooperative::{self, Operand, Output};
use crate::ops::matmul::{self, Orientation};
use crate::ops::{spread, spread_elements};
use crate::{Error, Result};

/// Number of rows, and of columns, of a tile.
pub const TILE: usize = 64;
/// Number of elements of a tile.
pub(crate) const AREA: usize = TILE * TILE;

/// A symmetric or lower triangular `[n, n]` matrix in packed storage: the tiles of its lower triangle.
///
/// Tile (I, J), J ≤ I, has index I(I+1)/2 + J. It holds the 64 rows from 64·I on and the 64 columns from 64·J on, in row-major
/// order. Tiles on the diagonal are stored whole. Elements beyond row or column n are zero.
#[derive(Debug)]
pub struct Packed {
    n: usize,
    tiles: Tensor,
}

impl Packed {
    /// The zero matrix of extent n.
    pub fn zeros(rec: &mut Recorder, n: usize) -> Result<Self> {
        Ok(Self { n, tiles: rec.zeros(&[tile_count(n), AREA])? })
    }

    /// A matrix of extent n whose elements are undefined.
    pub(crate) fn empty(rec: &mut Recorder, n: usize) -> Result<Self> {
        Ok(Self { n, tiles: rec.empty(&[tile_count(n), AREA])? })
    }

    /// Number of rows, and of columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The tiles, `[tiles, 4096]`.
    pub(crate) fn tiles(&self) -> &Tensor {
        &self.tiles
    }

    /// The tiles, `[tiles, 4096]`, for changing them.
    pub(crate) fn tiles_mut(&mut self) -> &mut Tensor {
        &mut self.tiles
    }

    /// `self += other`. Errors: `Error::Shape` if the extents differ.
    pub fn add_assign(&mut self, rec: &mut Recorder, other: &Self) -> Result<()> {
        if self.n != other.n {
            return Err(Error::shape("gram add_assign", format!("extents {} and {}", self.n, other.n)));
        }
        add::add_assign(rec, &mut self.tiles, &other.tiles)
    }
}

/// Returns the number of tiles of a matrix of extent n.
pub(crate) fn tile_count(n: usize) -> usize {
    let rows = n.div_ceil(TILE);
    rows * (rows + 1) / 2
}

/// Returns the number of elements of all tiles of a matrix of extent n.
pub(crate) fn packed_len(n: usize) -> usize {
    tile_count(n) * AREA
}

/// Returns the index of tile (row, column), column ≤ row.
pub(crate) fn tile_index(row: usize, column: usize) -> usize {
    row * (row + 1) / 2 + column
}

/// Returns the tile row and tile column of every tile, in the order of storage.
pub(crate) fn tile_positions(n: usize) -> Vec<(usize, usize)> {
    (0..n.div_ceil(TILE)).flat_map(|row| (0..=row).map(move |column| (row, column))).collect()
}

/// Returns the index in packed storage of element (row, column), column ≤ row.
pub(crate) fn offset(row: usize, column: usize) -> usize {
    tile_index(row / TILE, column / TILE) * AREA + row % TILE * TILE + column % TILE
}

uniform! {
    struct Params of "gram" {
        n: u32,
        first: u32,
        last: u32,
        tiles: u32,
        stride: u32,
        start: u32,
        rows: u32,
    }
}

uniform! {
    struct ConvertParams of "packed" {
        n: u32,
        count: u32,
        stride: u32,
        start: u32,
    }
}

/// Dispatches a kernel of `packed.wgsl`, which writes `count` elements of a matrix of extent n, from row `start` on.
fn convert(
    rec: &mut Recorder,
    kernel: &'static str,
    [n, start, count]: [usize; 3],
    source: &Buffer,
    destination: &Buffer,
) -> Result<()> {
    let (workgroups, stride) = spread_elements(count);
    let params = ConvertParams { n: n as u32, count: count as u32, stride, start: start as u32 };
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &[source],
        outputs: &[destination],
        workgroups,
        work: 4.0 * count as f64,
    })
}

/// Divides the tokens into ranges `[first, last]`, one per dispatch. A range is short enough for a running sum in f32, and for
/// the watchdog of a slow GPU.
fn token_ranges(tokens: usize, n: usize) -> impl Iterator<Item = [u32; 2]> {
    let most = (1e11 / (n as f64).powi(2).max(1.0)).clamp(256.0, 2048.0) as usize;
    (0..tokens).step_by(most).map(move |first| [first as u32, tokens.min(first + most) as u32])
}

/// Returns the fast shape for a sum over `tokens` tokens of `n` channels, and the largest number of tokens per dispatch. Returns
/// `None` if the portable kernel is to be used.
fn fast_shape(rec: &Recorder, tokens: usize, n: usize) -> Option<(&'static FastShape, usize)> {
    let most = cooperative::largest_depth(n, rec.device().largest_array()).min(2048);
    rec.fast_shape([n, n, tokens]).filter(|_| most >= 256).map(|shape| (shape, most))
}

/// `H += XᵀX`. `x`: `[tokens, n]`. Errors: `Error::Shape` if the extent of `h` is not n.
pub fn accumulate(rec: &mut Recorder, x: &Tensor, h: &mut Packed) -> Result<()> {
    let [tokens, n] = x.matrix("gram")?;
    if n != h.n {
        return Err(Error::shape("gram", format!("tokens of {n} channels into a matrix of extent {}", h.n)));
    }
    if let Some((shape, most)) = fast_shape(rec, tokens, n) {
        for first in (0..tokens).step_by(most) {
            let depth = most.min(tokens - first);
            let x = Operand { depth, start: first * n, ..cooperative::columns_of(x) };
            cooperative::gram(rec, shape, x, h.tiles.buffer())?;
        }
        return Ok(());
    }
    if rec.is_gpu() {
        let tiles = tile_count(n);
        let workgroups = spread(tiles);
        for [first, last] in token_ranges(tokens, n) {
            let params = Params {
                n: n as u32,
                first,
                last,
                tiles: tiles as u32,
                stride: workgroups[0] as u32,
                start: 0,
                rows: n as u32,
            };
            rec.dispatch(Dispatch {
                kernel: "gram",
                params: bytemuck::bytes_of(&params),
                inputs: &[x.buffer()],
                outputs: &[h.tiles.buffer()],
                workgroups,
                work: f64::from(last - first) * n as f64 * n as f64,
            })?;
        }
        return Ok(());
    }
    accumulate_cpu(MatRef::from_row_major_slice(x.host(), tokens, n), h.tiles.host_mut());
    Ok(())
}

/// `D += (X − X̂)ᵀX̂`, for the rows of D from `start` on. D has one row for each channel of the error X − X̂, and one column
/// for each channel of X̂.
///
/// `x`, `x_hat`: `[tokens, n]`; `d`: `[rows, n]`, the rows start..start + rows of D. Errors: `Error::Shape` if the shapes do
/// not match.
pub fn cross(rec: &mut Recorder, x: &Tensor, x_hat: &Tensor, start: usize, d: &mut Tensor) -> Result<()> {
    let ([tokens, n], [rows, _]) = (x.matrix("cross")?, d.matrix("cross")?);
    x_hat.expect_shape("cross", &[tokens, n])?;
    d.expect_shape("cross", &[rows, n])?;
    if start + rows > n {
        return Err(Error::shape("cross", format!("rows {start}..{} of {n}", start + rows)));
    }
    if let Some((shape, most)) = fast_shape(rec, tokens, n) {
        let out = Output { c: d.buffer(), start: 0, stride: n, accumulate: true };
        for first in (0..tokens).step_by(most) {
            let depth = most.min(tokens - first);
            let columns = |x| Operand { depth, start: first * n, ..cooperative::columns_of(x) };
            let delta = Operand { minus: Some(x_hat.buffer()), rows, start: first * n + start, ..columns(x) };
            cooperative::product(rec, shape, delta, columns(x_hat), &out)?;
        }
        return Ok(());
    }
    if rec.is_gpu() {
        let [columns, tile_rows] = [n, rows].map(|extent| extent.div_ceil(TILE));
        let (tiles, stride, start) = (columns as u32, columns as u32, start as u32);
        for [first, last] in token_ranges(tokens, n) {
            let params = Params { n: n as u32, first, last, tiles, stride, start, rows: rows as u32 };
            rec.dispatch(Dispatch {
                kernel: "gram_cross",
                params: bytemuck::bytes_of(&params),
                inputs: &[x.buffer(), x_hat.buffer()],
                outputs: &[d.buffer()],
                workgroups: [columns, tile_rows, 1],
                work: 2.0 * f64::from(last - first) * n as f64 * rows as f64,
            })?;
        }
        return Ok(());
    }
    let mut delta = vec![0.0f32; tokens * rows];
    let width = n.max(1);
    delta.par_chunks_mut(rows.max(1)).zip(x.host().par_chunks(width)).zip(x_hat.host().par_chunks(width)).for_each(
        |((delta, x), x_hat)| {
            for ((delta, x), x_hat) in delta.iter_mut().zip(&x[start..]).zip(&x_hat[start..]) {
                *delta = x - x_hat;
            }
        },
    );
    let delta = MatRef::from_row_major_slice(&delta, tokens, rows);
    let x_hat = MatRef::from_row_major_slice(x_hat.host(), tokens, n);
    matmul::cpu(Orientation::Tn, delta, x_hat, d.host_mut(), Accum::Add);
    Ok(())
}

/// Reads the diagonal of `h`, n elements. Waits for the GPU.
pub async fn diagonal(rec: &mut Recorder, h: &Packed) -> Result<Vec<f32>> {
    if rec.is_gpu() {
        let diagonal: Tensor = rec.empty(&[h.n])?;
        convert(rec, "packed_diagonal", [h.n, 0, h.n], h.tiles.buffer(), diagonal.buffer())?;
        return rec.read(&diagonal).await;
    }
    let tiles = h.tiles.host();
    Ok((0..h.n).map(|i| tiles[offset(i, i)]).collect())
}

/// Returns the dense symmetric matrix, `[n, n]`.
pub fn unpack(rec: &mut Recorder, h: &Packed) -> Result<Tensor> {
    unpack_rows(rec, h, 0, h.n)
}

/// Returns the rows `start..start + count` of the dense symmetric matrix, `[count, n]`. Errors: `Error::Shape` if the range
/// exceeds n.
pub fn unpack_rows(rec: &mut Recorder, h: &Packed, start: usize, count: usize) -> Result<Tensor> {
    let n = h.n;
    if start + count > n {
        return Err(Error::shape("unpack_rows", format!("rows {start}..{} of {n}", start + count)));
    }
    let mut dense = rec.empty(&[count, n])?;
    if rec.is_gpu() {
        convert(rec, "packed_unpack", [n, start, count * n], h.tiles.buffer(), dense.buffer())?;
        return Ok(dense);
    }
    let tiles = h.tiles.host();
    dense.host_mut().par_chunks_mut(n.max(1)).enumerate().for_each(|(row, values)| {
        let (i, row) = (start + row, values);
        for (j, value) in row.iter_mut().enumerate() {
            *value = tiles[offset(i.max(j), i.min(j))];
        }
    });
    Ok(dense)
}

/// Converts a dense symmetric matrix `[n, n]` to packed storage. Only its lower triangle is read.
///
/// Errors: `Error::Shape` if the matrix is not square.
pub fn pack(rec: &mut Recorder, dense: &Tensor) -> Result<Packed> {
    let [n, columns] = dense.matrix("pack")?;
    dense.expect_shape("pack", &[columns, columns])?;
    let mut packed = Packed::empty(rec, n)?;
    if rec.is_gpu() {
        convert(rec, "packed_pack", [n, 0, packed.tiles.len()], dense.buffer(), packed.tiles.buffer())?;
        return Ok(packed);
    }
    let dense = dense.host();
    fill_tiles(packed.tiles.host_mut(), n, |i, j| dense[i.max(j) * n + i.min(j)]);
    Ok(packed)
}

/// Sets each element of each tile to `value(row, column)`. Sets elements beyond row or column n to zero.
pub(crate) fn fill_tiles(tiles: &mut [f32], n: usize, value: impl Fn(usize, usize) -> f32 + Sync) {
    tiles.par_chunks_mut(AREA).zip(tile_positions(n)).for_each(|(tile, (tile_row, tile_column))| {
        for (i, row) in tile.chunks_mut(TILE).enumerate() {
            for (j, element) in row.iter_mut().enumerate() {
                let (i, j) = (tile_row * TILE + i, tile_column * TILE + j);
                *element = if i < n && j < n { value(i, j) } else { 0.0 };
            }
        }
    });
}

/// A block of tiles that the CPU twin computes as one product. It is a rectangle below the diagonal or a square on it.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// First tile row, and the tile row after the last; then the same for tile columns.
    rows: [usize; 2],
    columns: [usize; 2],
}

/// The largest number of tile rows of a square on the diagonal. Such a square is computed whole, although its upper half is not
/// used.
const DIAGONAL_TILES: usize = 2;
/// Numbers of tile rows and tile columns of the largest rectangle. They are large enough that packing the operands costs little.
const BLOCK_TILES: [usize; 2] = [8, 16];

/// Covers the triangle of tile rows and tile columns lo..hi with blocks. The two halves of the diagonal are covered by recursion,
/// and the square to the left of the second half by rectangles.
fn cover(lo: usize, hi: usize, out: &mut Vec<Block>) {
    if hi - lo <= DIAGONAL_TILES {
        out.push(Block { rows: [lo, hi], columns: [lo, hi] });
        return;
    }
    let middle = lo + (hi - lo).div_ceil(2);
    for row in (middle..hi).step_by(BLOCK_TILES[0]) {
        for column in (lo..middle).step_by(BLOCK_TILES[1]) {
            let rows = [row, hi.min(row + BLOCK_TILES[0])];
            out.push(Block { rows, columns: [column, middle.min(column + BLOCK_TILES[1])] });
        }
    }
    cover(lo, middle, out);
    cover(middle, hi, out);
}

/// The CPU twin of [`accumulate`]: computes the blocks of the lower triangle on all cores and adds them to their tiles.
fn accumulate_cpu(x: MatRef<'_, f32>, tiles: &mut [f32]) {
    let n = x.ncols();
    if n == 0 {
        return;
    }
    let mut blocks = Vec::new();
    cover(0, n.div_ceil(TILE), &mut blocks);
    let mut free: Vec<Option<&mut [f32]>> = tiles.chunks_mut(AREA).map(Some).collect();
    let mut take = |row: usize, column: usize| free[tile_index(row, column)].take();
    let tasks: Vec<_> = blocks
        .into_iter()
        .map(|block| {
            let own: Vec<_> = (block.rows[0]..block.rows[1])
                .flat_map(|row| (block.columns[0]..block.columns[1].min(row + 1)).map(move |column| (row, column)))
                .map(|(row, column)| (row, column, take(row, column).expect("blocks do not overlap")))
                .collect();
            (block, own)
        })
        .collect();
    tasks.into_par_iter().for_each(|(block, own)| add_products(x, block, own));
}

/// Adds a block of XᵀX to its tiles. `tiles`: tile row, tile column and elements of each tile.
fn add_products(x: MatRef<'_, f32>, block: Block, tiles: Vec<(usize, usize, &mut [f32])>) {
    let n = x.ncols();
    let [r0, r1] = block.rows.map(|tile| n.min(tile * TILE));
    let [c0, c1] = block.columns.map(|tile| n.min(tile * TILE));
    let width = c1 - c0;
    let mut sums = vec![0.0f32; (r1 - r0) * width];
    let view = MatMut::from_row_major_slice_mut(&mut sums, r1 - r0, width);
    let (left, right) = (x.subcols(r0, r1 - r0), x.subcols(c0, width));
    product(view, Accum::Replace, left.transpose(), right, 1.0, Par::Seq);
    for (row, column, tile) in tiles {
        let first = column * TILE - c0;
        let columns = first..width.min(first + TILE);
        for (tile, sums) in tile.chunks_mut(TILE).zip(sums.chunks(width).skip(row * TILE - r0)) {
            for (sum, value) in tile.iter_mut().zip(&sums[columns.clone()]) {
                *sum += value;
            }
        }
    }
}
