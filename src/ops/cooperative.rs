//! Large products on matrix units: the branch that `matmul` and `gram` take on a device of the
//! fast tier, and the check that decides whether it is one.
//!
//! An operand is split into two planes of f16, x = high + low, each row scaled by a power of two so that neither large nor small
//! values leave f16's range. The product is high·high + high·low + low·high, each of them exact, summed in f32. So the error
//! is that of a product in f32 or smaller; docs/devices.md has it measured. The twin is that of the op that comes here.

use std::sync::Arc;
use std::time::Instant;

use super::gram::{Packed, offset};
use super::matmul::{self, Orientation, Rows};
use super::spread;
use crate::Result;
use crate::device::{BLOCK, Buffer, Device, Dispatch, Gpu, Recorder, Shape};
use crate::tensor::Tensor;

/// The largest error that the check lets pass: of an element, relative to the norms of the row and the column it comes from. Of a
/// product in f32 it is about 1e-7.
pub const BOUND: f64 = 1e-6;

/// Bytes of the planes of one operand at most. Larger operands go in pieces of their rows.
pub(crate) const PLANES: u64 = 256 << 20;
/// Rows of an operand that a workgroup splits.
const SPLIT_ROWS: usize = 64;
/// Depths of an operand that a workgroup splits.
const CHUNK: usize = 128;
/// Depths are padded to a multiple of this, which every extent divides.
const DEPTH: usize = 32;

/// An operand: a matrix as rows that are contracted along their depth, wherever its elements are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Where its elements are.
    pub x: &'a Buffer,
    /// What is subtracted from them, in the same places. Only of an operand that lies along its rows.
    pub minus: Option<&'a Buffer>,
    /// Whether a row is contiguous in memory; else all first elements of the rows come first, then all second ones.
    pub along_depth: bool,
    pub rows: usize,
    pub depth: usize,
    /// First element.
    pub start: usize,
    /// Elements from one row of memory to the next.
    pub stride: usize,
}

impl Operand<'_> {
    /// Some of its rows.
    fn piece(self, first: usize, count: usize) -> Self {
        let step = if self.along_depth { self.stride } else { 1 };
        Self { rows: count, start: self.start + first * step, ..self }
    }

    /// First row and number of rows of the pieces whose planes `largest` bytes can hold.
    fn pieces(self, largest: u64) -> impl Iterator<Item = (usize, usize)> {
        let bytes = 4 * self.depth.next_multiple_of(DEPTH) as u64;
        let most = (PLANES.min(largest) / bytes.max(1)) as usize / BLOCK * BLOCK;
        let most = most.max(BLOCK);
        (0..self.rows).step_by(most).map(move |first| (first, most.min(self.rows - first)))
    }
}

/// The rows of a matrix.
pub(crate) fn rows_of(x: &Tensor) -> Operand<'_> {
    let [rows, depth] = [x.shape()[0], x.shape()[1]];
    Operand { x: x.buffer(), minus: None, along_depth: true, rows, depth, start: 0, stride: depth }
}

/// The columns of a matrix.
pub(crate) fn columns_of(x: &Tensor) -> Operand<'_> {
    let [depth, rows] = [x.shape()[0], x.shape()[1]];
    Operand { x: x.buffer(), minus: None, along_depth: false, rows, depth, start: 0, stride: rows }
}

/// Depths whose planes one array of at most `largest` bytes can hold, for an operand of that many rows.
pub(crate) fn longest(rows: usize, largest: u64) -> usize {
    (PLANES.min(largest) / 4) as usize / rows.next_multiple_of(BLOCK).max(1) / DEPTH * DEPTH
}

/// An operand in two planes of f16.
struct Planes {
    words: Tensor<u32>,
    /// Undoes the scale of each row.
    undo: Tensor,
    /// Tiles along the depth.
    depth: usize,
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

/// Where a product goes.
pub(crate) struct Output<'a> {
    pub c: &'a Buffer,
    /// First element.
    pub start: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Whether the product is added to what is there.
    pub accumulate: bool,
}

/// `C (+)= P·Qᵀ`, P `[m, depth]`, Q `[n, depth]`.
pub(crate) fn product(
    rec: &mut Recorder,
    shape: &Shape,
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
            let workgroups = [columns.div_ceil(shape.block), rows.div_ceil(shape.block), 1];
            let work = 2.0 * rows as f64 * columns as f64 * p.depth as f64;
            multiply(rec, shape.dense, params, [&left, &right], out.c, workgroups, work)?;
        }
    }
    Ok(())
}

/// `H += P·Pᵀ`, P `[n, depth]`, into the tiles of a packed matrix.
pub(crate) fn gram(rec: &mut Recorder, shape: &Shape, p: Operand<'_>, h: &Buffer) -> Result<()> {
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
    let work = (p.rows * p.rows) as f64 * p.depth as f64;
    multiply(rec, shape.gram, params, [&planes, &planes], h, workgroups, work)
}

fn multiply(
    rec: &mut Recorder,
    kernel: &'static str,
    params: Params,
    [left, right]: [&Planes; 2],
    c: &Buffer,
    workgroups: [usize; 3],
    work: f64,
) -> Result<()> {
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &[left.words.buffer(), right.words.buffer(), left.undo.buffer(), right.undo.buffer()],
        outputs: &[c],
        workgroups,
        work,
    })
}

/// Extents of the check: of odd sizes, several blocks each way.
const ROWS: usize = 197;
const COLUMNS: usize = 131;
const CHECK_DEPTH: usize = 77;

/// The quickest of `shapes` that calculates right on this device, and the error that it had. `known` was the quickest before.
/// On hardware it has to be quicker than the portable kernel, too.
///
/// Errors: what is wrong with them, as a phrase.
pub(crate) async fn choose(
    gpu: &Arc<Gpu>,
    shapes: Vec<&'static Shape>,
    known: Option<&'static Shape>,
) -> std::result::Result<(&'static Shape, f64), String> {
    let mut rec = Recorder::new(&Device::Gpu(gpu.clone()));
    if let Some(shape) = known.filter(|known| shapes.contains(known))
        && let Ok((error, _)) = check(&mut rec, shape).await
    {
        return Ok((shape, error));
    }
    let mut best: Option<(f64, &'static Shape, f64)> = None;
    let mut bits: Option<Vec<u32>> = None;
    let mut trouble = "there is no shape for it".to_string();
    for shape in shapes {
        match check(&mut rec, shape).await {
            // The quickest may be another tomorrow: it must not matter.
            Ok((_, found)) if bits.get_or_insert_with(|| found.clone()) != &found => {
                trouble = "its shapes differ in their results".to_string();
            }
            Ok((error, _)) => match seconds(&mut rec, Some(shape)).await {
                Ok(seconds) if best.is_none_or(|(least, ..)| seconds < least) => best = Some((seconds, shape, error)),
                Ok(_) => {}
                Err(error) => trouble = error.to_string(),
            },
            Err(reason) => trouble = reason,
        }
    }
    let (least, shape, error) = best.ok_or(trouble)?;
    if !gpu.is_software() {
        let portable = seconds(&mut rec, None).await.map_err(|error| error.to_string())?;
        if portable <= least {
            return Err(format!("whose products in f32 are {:.1} times as quick here", least / portable));
        }
    }
    Ok((shape, error))
}

/// Values of the check: seeded, of either sign, each row of its own magnitude, from 2^-20 to 2^20.
fn values(seed: u32, rows: usize, columns: usize, along_depth: bool) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let magnitude = |row: usize| ((row * 7 % 41) as f32 - 20.0).exp2();
    let row = |index: usize| if along_depth { index / columns } else { index % columns };
    (0..rows * columns).map(|index| next() * magnitude(row(index))).collect()
}

/// The largest |c − p·q| / (‖p‖·‖q‖) of the elements (row, column) that `c` gives.
fn worst(c: impl Fn(usize, usize) -> Option<f32>, p: &[Vec<f64>], q: &[Vec<f64>]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = |rows: &[Vec<f64>]| rows.iter().map(|row| dot(row, row).sqrt()).collect::<Vec<_>>();
    let (p_norms, q_norms) = (norms(p), norms(q));
    let mut worst = 0.0f64;
    for (row, p_row) in p.iter().enumerate() {
        for (column, q_row) in q.iter().enumerate() {
            if let Some(value) = c(row, column) {
                let error = (f64::from(value) - dot(p_row, q_row)).abs() / (p_norms[row] * q_norms[column]);
                // What is no number is worse than any.
                worst = if error <= worst {
                    worst
                } else if error.is_nan() {
                    f64::INFINITY
                } else {
                    error
                };
            }
        }
    }
    worst
}

/// The largest error of a shape in a product, a cross term and a Gram matrix, and the bits of these. Errors: why it is of no use,
/// as a phrase.
async fn check(rec: &mut Recorder, shape: &Shape) -> std::result::Result<(f64, Vec<u32>), String> {
    match errors(rec, shape).await {
        Ok((error, bits)) if error <= BOUND => Ok((error, bits)),
        Ok((error, _)) => Err(format!("its check found an error of {error:.1e}, more than {BOUND:.0e}")),
        Err(error) => Err(format!("its check failed: {error}")),
    }
}

async fn errors(rec: &mut Recorder, shape: &Shape) -> Result<(f64, Vec<u32>)> {
    let (va, vb) = (values(1, ROWS, CHECK_DEPTH, true), values(2, COLUMNS, CHECK_DEPTH, true));
    let (vx, vy) = (values(3, CHECK_DEPTH, ROWS, false), values(4, CHECK_DEPTH, ROWS, false));
    let a = rec.upload(&[ROWS, CHECK_DEPTH], va.clone())?;
    let b = rec.upload(&[COLUMNS, CHECK_DEPTH], vb.clone())?;
    let x = rec.upload(&[CHECK_DEPTH, ROWS], vx.clone())?;
    let y = rec.upload(&[CHECK_DEPTH, ROWS], vy.clone())?;
    let c: Tensor = rec.zeros(&[ROWS, COLUMNS])?;
    let d: Tensor = rec.zeros(&[ROWS, ROWS])?;
    let h = Packed::zeros(rec, ROWS)?;
    let out = Output { c: c.buffer(), start: 0, stride: COLUMNS, accumulate: false };
    product(rec, shape, rows_of(&a), rows_of(&b), &out)?;
    let out = Output { c: d.buffer(), start: 0, stride: ROWS, accumulate: true };
    let difference = Operand { minus: Some(y.buffer()), ..columns_of(&x) };
    product(rec, shape, difference, columns_of(&y), &out)?;
    gram(rec, shape, columns_of(&x), h.tiles().buffer())?;
    let (c, d, h) = (rec.read(&c).await?, rec.read(&d).await?, rec.read(h.tiles()).await?);

    let along = |v: &[f32]| -> Vec<Vec<f64>> {
        v.chunks(CHECK_DEPTH).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    };
    let across = |v: &[f32]| -> Vec<Vec<f64>> {
        (0..ROWS).map(|row| v.iter().skip(row).step_by(ROWS).map(|&v| f64::from(v)).collect()).collect()
    };
    let delta: Vec<f32> = vx.iter().zip(&vy).map(|(x, y)| x - y).collect();
    let (x, y) = (across(&vx), across(&vy));
    let products = worst(|i, j| Some(c[i * COLUMNS + j]), &along(&va), &along(&vb));
    let crosses = worst(|i, j| Some(d[i * ROWS + j]), &across(&delta), &y);
    let squares = worst(|i, j| (j <= i).then(|| h[offset(i, j)]), &x, &x);
    let bits = c.iter().chain(&d).chain(&h).map(|value| value.to_bits()).collect();
    Ok((products.max(crosses).max(squares), bits))
}

/// Seconds of a product that is large for the device, by the portable kernel where there is no shape: the least of some, after
/// one that warms up.
async fn seconds(rec: &mut Recorder, shape: Option<&Shape>) -> Result<f64> {
    let software = matches!(rec.device(), Device::Gpu(gpu) if gpu.is_software());
    let (extent, repetitions) = if software { (256, 1) } else { (2048, 4) };
    let [a, b, mut c] = [rec.zeros(&[extent; 2])?, rec.zeros(&[extent; 2])?, rec.zeros(&[extent; 2])?];
    let mut least = f64::INFINITY;
    for round in 0..4 {
        rec.finish().await?;
        let since = Instant::now();
        for _ in 0..repetitions {
            match shape {
                Some(shape) => {
                    let out = Output { c: c.buffer(), start: 0, stride: extent, accumulate: true };
                    product(rec, shape, rows_of(&a), rows_of(&b), &out)?;
                }
                // Nothing is fast before this is settled.
                None => matmul::accumulate(rec, Orientation::Nt, Rows::all(&a), Rows::all(&b), &mut c, 0)?,
            }
        }
        rec.finish().await?;
        if round > 0 {
            least = least.min(since.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}
