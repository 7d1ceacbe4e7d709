//! Large matrix products on matrix units: the kernels of the fast tier. `matmul` and `gram` use them on devices that have it.
//!
//! An operand is split into two planes of f16: x = high + low. Before the split, each row is scaled by a power of two, so that
//! its values do not leave the range of f16. The product is high·high + high·low + low·high. Each of these terms is exact, and
//! they are summed in f32. So the error is that of a product in f32, or smaller (docs/devices.md has measurements). The shaders
//! are `split_range`, `split` and `cooperative`. Their CPU twins are those of `matmul` and `gram`. `tier` compares the shaders
//! with f64 before a device uses them.

use super::spread;
use crate::Result;
use crate::device::{Buffer, Dispatch, FastShape, Recorder, Tensor};

/// The largest size of the planes of one operand, in bytes. A larger operand is processed in pieces of its rows.
pub(crate) const PLANES: u64 = 256 << 20;
/// The number of rows of a plane is padded to a multiple of this. It is a multiple of the `block` of every shape.
const BLOCK: usize = 128;
/// The depth of a plane is padded to a multiple of this. It is a multiple of the `extent` of every shape.
const DEPTH: usize = 32;
/// Number of rows of an operand that one workgroup splits.
const SPLIT_ROWS: usize = 64;
/// Number of depths of an operand that one workgroup splits. The shaders call this a chunk.
const CHUNK: usize = 128;

/// An operand of a product: `rows` vectors of `depth` elements. The product contracts along the depth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// The buffer that holds the elements.
    pub x: &'a Buffer,
    /// A buffer of the same layout, whose elements are subtracted from those of `x`. It requires that `along_depth` is false.
    pub minus: Option<&'a Buffer>,
    /// Whether the elements of one row are contiguous in memory. Otherwise memory holds the first elements of all rows, then the
    /// second elements of all rows, and so on.
    pub along_depth: bool,
    /// Number of rows.
    pub rows: usize,
    /// Number of elements per row.
    pub depth: usize,
    /// Index of the first element.
    pub start: usize,
    /// Number of elements in memory from one row to the next. If `along_depth` is false: from one depth to the next.
    pub stride: usize,
}

/// Returns the rows of a matrix as an operand. `x`: `[rows, depth]`.
pub(crate) fn rows_of(x: &Tensor) -> Operand<'_> {
    let [rows, depth] = [x.shape()[0], x.shape()[1]];
    Operand { x: x.buffer(), minus: None, along_depth: true, rows, depth, start: 0, stride: depth }
}

/// Returns the columns of a matrix as an operand. `x`: `[depth, rows]`.
pub(crate) fn columns_of(x: &Tensor) -> Operand<'_> {
    let [depth, rows] = [x.shape()[0], x.shape()[1]];
    Operand { x: x.buffer(), minus: None, along_depth: false, rows, depth, start: 0, stride: rows }
}

impl Operand<'_> {
    /// Returns the rows `first..first + count` of this operand.
    fn piece(self, first: usize, count: usize) -> Self {
        let step = if self.along_depth { self.stride } else { 1 };
        Self { rows: count, start: self.start + first * step, ..self }
    }

    /// Divides the rows into pieces whose planes fit an array of `largest` bytes. Yields the first row and the number of rows
    /// of each piece.
    fn pieces(self, largest: u64) -> impl Iterator<Item = (usize, usize)> {
        let bytes = 4 * self.depth.next_multiple_of(DEPTH) as u64;
        let most = (PLANES.min(largest) / bytes.max(1)) as usize / BLOCK * BLOCK;
        let most = most.max(BLOCK);
        (0..self.rows).step_by(most).map(move |first| (first, most.min(self.rows - first)))
    }
}

/// Returns the largest depth with which the planes of an operand of `rows` rows fit an array of `largest` bytes.
pub(crate) fn largest_depth(rows: usize, largest: u64) -> usize {
    (PLANES.min(largest) / 4) as usize / rows.next_multiple_of(BLOCK).max(1) / DEPTH * DEPTH
}

/// A split operand.
struct Planes {
    /// Both planes, `[padded rows, padded depth]` words of two f16. They are stored in square tiles with the extent of a
    /// cooperative matrix; `shaders/split.wgsl` describes the layout.
    words: Tensor<u32>,
    /// For each padded row, the factor that undoes its scale.
    undo: Tensor,
    /// Number of tiles along the depth.
    depth: usize,
}

/// Returns the buffers of two split operands, in the order of the bindings in `shaders/cooperative.wgsl`.
fn bindings<'a>(left: &'a Planes, right: &'a Planes) -> [&'a Buffer; 4] {
    [left.words.buffer(), right.words.buffer(), left.undo.buffer(), right.undo.buffer()]
}

uniform! {
    struct SplitParams of "split_range", "split" {
        rows: u32,
        depth: u32,
        start: u32,
        stride: u32,
        padded_rows: u32,
        padded_depth: u32,
        chunks: u32,
        extent: u32,
    }
}

uniform! {
    struct Params of "cooperative" {
        m: u32,
        n: u32,
        depth: u32,
        accumulate: u32,
        c_start: u32,
        c_stride: u32,
        blocks: u32,
    }
}

/// Splits an operand into planes. The first kernel finds the largest magnitude of each row. The second kernel scales the rows and
/// splits them. `extent`: rows and columns of a tile.
fn split(rec: &mut Recorder, x: Operand<'_>, extent: usize) -> Result<Planes> {
    let (rows, depth) = (x.rows.next_multiple_of(BLOCK), x.depth.next_multiple_of(DEPTH));
    let chunks = depth.div_ceil(CHUNK);
    let range: Tensor = rec.empty(&[chunks, rows])?;
    let words: Tensor<u32> = rec.empty(&[rows, depth])?;
    let undo: Tensor = rec.empty(&[rows])?;
    let params = SplitParams {
        rows: x.rows as u32,
        depth: x.depth as u32,
        start: x.start as u32,
        stride: x.stride as u32,
        padded_rows: rows as u32,
        padded_depth: depth as u32,
        chunks: chunks as u32,
        extent: extent as u32,
    };
    let (range_kernel, split_kernel) = match (x.minus, x.along_depth) {
        (None, true) => ("split_range_rows", "split_rows"),
        (None, false) => ("split_range_columns", "split_columns"),
        (Some(_), _) => ("split_range_difference", "split_difference"),
    };
    let mut inputs: Vec<&Buffer> = std::iter::once(x.x).chain(x.minus).collect();
    let workgroups = [rows / SPLIT_ROWS, chunks, 1];
    let work = (x.rows * x.depth) as f64;
    rec.dispatch(Dispatch {
        kernel: range_kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &inputs,
        outputs: &[range.buffer()],
        workgroups,
        work,
    })?;
    inputs.push(range.buffer());
    rec.dispatch(Dispatch {
        kernel: split_kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &inputs,
        outputs: &[words.buffer(), undo.buffer()],
        workgroups,
        work: 4.0 * work,
    })?;
    Ok(Planes { words, undo, depth: depth / extent })
}

/// The destination of a product.
pub(crate) struct Output<'a> {
    /// The buffer of a row-major matrix.
    pub c: &'a Buffer,
    /// Index of the first element.
    pub start: usize,
    /// Number of elements from one row to the next.
    pub stride: usize,
    /// Whether the product is added to the matrix. Otherwise it replaces the matrix.
    pub accumulate: bool,
}

/// Computes `C = P·Qᵀ` or `C += P·Qᵀ`. P: `[m, depth]`; Q: `[n, depth]`; C, in `out`: `[m, n]`.
pub(crate) fn product(
    rec: &mut Recorder,
    shape: &FastShape,
    p: Operand<'_>,
    q: Operand<'_>,
    out: &Output<'_>,
) -> Result<()> {
    let largest = rec.device().largest_array();
    for (column, columns) in q.pieces(largest) {
        let right = split(rec, q.piece(column, columns), shape.extent)?;
        for (row, rows) in p.pieces(largest) {
            let left = split(rec, p.piece(row, rows), shape.extent)?;
            let params = Params {
                m: rows as u32,
                n: columns as u32,
                depth: left.depth as u32,
                accumulate: u32::from(out.accumulate),
                c_start: (out.start + row * out.stride + column) as u32,
                c_stride: out.stride as u32,
                blocks: 0,
            };
            rec.dispatch(Dispatch {
                kernel: shape.dense,
                params: bytemuck::bytes_of(&params),
                inputs: &bindings(&left, &right),
                outputs: &[out.c],
                workgroups: [columns.div_ceil(shape.block), rows.div_ceil(shape.block), 1],
                work: 2.0 * rows as f64 * columns as f64 * p.depth as f64,
            })?;
        }
    }
    Ok(())
}

/// Computes `H += P·Pᵀ`. P: `[n, depth]`; `h`: the tiles of a [`Packed`](super::gram::Packed) matrix of extent n.
pub(crate) fn gram(rec: &mut Recorder, shape: &FastShape, p: Operand<'_>, h: &Buffer) -> Result<()> {
    let planes = split(rec, p, shape.extent)?;
    let across = p.rows.div_ceil(shape.block);
    let blocks = across * (across + 1) / 2;
    let workgroups = spread(blocks);
    let params = Params {
        m: p.rows as u32,
        n: p.rows as u32,
        depth: planes.depth as u32,
        accumulate: 1,
        c_start: 0,
        c_stride: workgroups[0] as u32,
        blocks: blocks as u32,
    };
    rec.dispatch(Dispatch {
        kernel: shape.gram,
        params: bytemuck::bytes_of(&params),
        inputs: &bindings(&planes, &planes),
        outputs: &[h],
        workgroups,
        work: (p.rows * p.rows) as f64 * p.depth as f64,
    })
}
