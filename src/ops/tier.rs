//! Opens a device, and chooses between its fast and its portable matrix products.
//!
//! The fast products (`cooperative`) use matrix units through cooperative matrices. wgpu calls these experimental, so each
//! device is checked when it is opened. Each shape of the fast kernels is compared with products in f64. The fastest shape that
//! passes becomes the fast tier of the device. If no shape passes, or if the portable kernel (`matmul`) is faster, the device
//! uses the portable kernels, and [`Gpu::tier`] gives the reason.
//!
//! The library has no clock and writes no files. A program that has a clock or a cache provides them through [`FrontEnd`].

use std::sync::Arc;

use super::cooperative::{Operand, Output, columns_of, gram, product, rows_of};
use super::gram::{Packed, offset};
use super::matmul::{self, Orientation, Rows};
use crate::Result;
use crate::device::{
    self, AdapterSummary, Choice, Clock, Device, FastShape, FastTier, Gpu, MatrixUnits, Precision, Recorder, Tensor,
};
use crate::error::{Phrase, phrase};

/// What a program provides when it opens a device: a clock, and a memory for the chosen shape. The default methods provide
/// neither.
pub trait FrontEnd {
    /// A clock. With it, submissions to a GPU are sized to a duration in seconds, and the shapes of the fast tier are timed.
    /// Without it, all submissions have the same amount of work, and the device uses the first shape that passes the check.
    fn clock(&self) -> Option<Clock> {
        None
    }

    /// Returns the shape that was last passed to [`FrontEnd::remember_shape`] for this key. Such a shape is checked but not
    /// timed.
    fn remembered_shape(&self, _key: &str) -> Option<String> {
        None
    }

    /// Stores the name of the fastest shape. `key` names the adapter, its driver and the version of the kernels.
    fn remember_shape(&self, _key: &str, _shape: &str) {}
}

/// Provides neither a clock nor a memory.
impl FrontEnd for () {}

/// Opens the device that `choice` asks for. With [`Precision::Fast`], it checks the fast kernels and uses them if they pass.
///
/// Returns the device, and the reason for the choice as a phrase. Errors: `Error::Input` if no device fits the choice,
/// `Error::Gpu` if the device cannot be opened. It is no error if the fast kernels fail their check. [`Gpu::tier`] then gives
/// the reason.
pub async fn open(choice: &Choice, precision: Precision, front_end: &dyn FrontEnd) -> Result<(Device, Phrase)> {
    let (device, reason) = device::open(choice, precision, front_end.clock()).await?;
    if let Device::Gpu(gpu) = &device {
        set_fast_tier(gpu, front_end).await;
    }
    Ok((device, reason))
}

/// Lists all adapters that [`Choice`] can name. Adapters with matrix units are opened and checked, and `tier` in their summary
/// gives the outcome.
pub async fn adapters(front_end: &dyn FrontEnd) -> Vec<AdapterSummary> {
    let mut summaries = Vec::new();
    for (index, adapter) in device::compute_adapters().await.iter().enumerate() {
        let mut summary = AdapterSummary::new(index, adapter);
        if MatrixUnits::of(adapter).is_ok() {
            summary.tier = match Gpu::open(adapter, Precision::Fast, front_end.clock()).await {
                Ok(gpu) => {
                    set_fast_tier(&gpu, front_end).await;
                    gpu.tier()
                }
                Err(error) => error.phrase(),
            };
        }
        summaries.push(summary);
    }
    summaries
}

/// Chooses the fast tier of a GPU that was opened with matrix units.
async fn set_fast_tier(gpu: &Arc<Gpu>, front_end: &dyn FrontEnd) {
    let shapes = gpu.fast_shapes();
    if !shapes.is_empty() {
        gpu.set_fast_tier(choose(gpu, &shapes, front_end).await);
    }
}

/// Returns the shape that the front end remembers, if it passes the check, or else the fastest shape that passes. Errors: a
/// phrase that says why the device uses no fast kernels.
async fn choose(gpu: &Arc<Gpu>, shapes: &[&'static FastShape], front_end: &dyn FrontEnd) -> Result<FastTier, Phrase> {
    let mut rec = Recorder::new(&Device::Gpu(gpu.clone()));
    let key = format!("{} | aquatint {}", gpu.driver(), env!("CARGO_PKG_VERSION"));
    let remembered = front_end.remembered_shape(&key);
    if let Some(shape) = shapes.iter().find(|shape| Some(shape.dense) == remembered.as_deref())
        && let Ok((tier, _)) = check(&mut rec, shape).await
    {
        return Ok(tier);
    }
    let right = right_shapes(&mut rec, shapes).await?;
    let Some(clock) = front_end.clock() else { return Ok(right[0]) };
    let (tier, seconds) = quickest(&mut rec, &right, clock).await?;
    // Software adapters serve tests. Tests need the fast kernels even if they are slower.
    if !gpu.is_software() {
        let portable = product_seconds(&mut rec, None, clock).await.map_err(|error| error.phrase())?;
        if portable <= seconds {
            return Err(format!("whose products in f32 are {:.1} times as quick here", seconds / portable).into());
        }
    }
    if remembered.as_deref() != Some(tier.shape.dense) {
        front_end.remember_shape(&key, tier.shape.dense);
    }
    Ok(tier)
}

/// Returns the shapes that pass the check and agree in every bit; there is at least one. They must agree, because on another day
/// another of them may be the fastest, and results must not depend on that. Errors: a phrase that says why no shape passes.
async fn right_shapes(rec: &mut Recorder, shapes: &[&'static FastShape]) -> Result<Vec<FastTier>, Phrase> {
    let mut right = Vec::new();
    let mut bits: Option<Vec<u32>> = None;
    let mut trouble = "there is no shape for it".into();
    for shape in shapes {
        match check(rec, shape).await {
            Ok((_, found)) if bits.get_or_insert_with(|| found.clone()) != &found => {
                trouble = "its shapes differ in their results".into();
            }
            Ok((tier, _)) => right.push(tier),
            Err(reason) => trouble = reason,
        }
    }
    if right.is_empty() { Err(trouble) } else { Ok(right) }
}

/// Returns the fastest of some shapes, and the time of its product in seconds. Errors: a phrase that says why no shape could be
/// timed.
async fn quickest(rec: &mut Recorder, tiers: &[FastTier], clock: Clock) -> Result<(FastTier, f64), Phrase> {
    let mut best: Option<(FastTier, f64)> = None;
    let mut trouble = Phrase::default();
    for tier in tiers {
        match product_seconds(rec, Some(tier.shape), clock).await {
            Ok(seconds) if best.is_none_or(|(_, least)| seconds < least) => best = Some((*tier, seconds)),
            Ok(_) => {}
            Err(error) => trouble = error.phrase(),
        }
    }
    best.ok_or(trouble)
}

/// Number of repetitions of a timed product. The first one only warms up the device.
const TIMED: usize = 4;

/// Returns the shortest time of a product in seconds: with the fast kernels of `shape`, or with the portable kernel for `None`.
async fn product_seconds(rec: &mut Recorder, shape: Option<&FastShape>, clock: Clock) -> Result<f64> {
    let software = matches!(rec.device(), Device::Gpu(gpu) if gpu.is_software());
    // On hardware, several products are timed together, so that their time is long compared with the wait for the GPU.
    let (extent, products) = if software { (256, 1) } else { (2048, 4) };
    let [a, b, mut c] = [rec.zeros(&[extent; 2])?, rec.zeros(&[extent; 2])?, rec.zeros(&[extent; 2])?];
    let mut least = f64::INFINITY;
    for round in 0..TIMED {
        rec.finish().await?;
        let since = clock();
        for _ in 0..products {
            match shape {
                Some(shape) => {
                    let out = Output { c: c.buffer(), start: 0, stride: extent, accumulate: true };
                    product(rec, shape, rows_of(&a), rows_of(&b), &out)?;
                }
                // The device has no fast tier yet, so `matmul` uses the portable kernel.
                None => matmul::accumulate(rec, Orientation::Nt, Rows::all(&a), Rows::all(&b), &mut c, 0)?,
            }
        }
        rec.finish().await?;
        if round > 0 {
            least = least.min(clock() - since);
        }
    }
    Ok(least)
}

/// The largest error that passes the check. The error of an element is relative to the product of the norms of the row and the
/// column that it is computed from. A product in f32 has an error of about 1e-7.
const LARGEST_ERROR: f64 = 1e-6;

/// Extents of the products in the check. They are odd and larger than one block of every shape, so that the check covers partial
/// tiles and several workgroups.
const ROWS: usize = 197;
const COLUMNS: usize = 131;
const DEPTH: usize = 77;

/// Checks a shape. Returns the shape with its largest error, and the bits of its results. Errors: a phrase that says why the
/// shape fails.
async fn check(rec: &mut Recorder, shape: &'static FastShape) -> Result<(FastTier, Vec<u32>), Phrase> {
    match errors(rec, shape).await {
        Ok((error, bits)) if error <= LARGEST_ERROR => Ok((FastTier { shape, error }, bits)),
        Ok((error, _)) => Err(format!("its check found an error of {error:.1e}, more than {LARGEST_ERROR:.0e}").into()),
        Err(error) => Err(phrase!["its check failed: ", error.phrase()]),
    }
}

/// Computes `A·Bᵀ`, `(X − Y)ᵀ·Y` and `XᵀX` with the fast kernels. Returns the largest error, and the bits of the results.
async fn errors(rec: &mut Recorder, shape: &FastShape) -> Result<(f64, Vec<u32>)> {
    let (va, vb) = (values(1, ROWS, DEPTH, true), values(2, COLUMNS, DEPTH, true));
    let (vx, vy) = (values(3, DEPTH, ROWS, false), values(4, DEPTH, ROWS, false));
    let a = rec.upload(&[ROWS, DEPTH], va.clone())?;
    let b = rec.upload(&[COLUMNS, DEPTH], vb.clone())?;
    let x = rec.upload(&[DEPTH, ROWS], vx.clone())?;
    let y = rec.upload(&[DEPTH, ROWS], vy.clone())?;
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

    let rows = |v: &[f32]| -> Vec<Vec<f64>> {
        v.chunks(DEPTH).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    };
    let columns = |v: &[f32]| -> Vec<Vec<f64>> {
        (0..ROWS).map(|row| v.iter().skip(row).step_by(ROWS).map(|&v| f64::from(v)).collect()).collect()
    };
    let delta: Vec<f32> = vx.iter().zip(&vy).map(|(x, y)| x - y).collect();
    let (x, y) = (columns(&vx), columns(&vy));
    let products = largest_error(|i, j| Some(c[i * COLUMNS + j]), &rows(&va), &rows(&vb));
    let crosses = largest_error(|i, j| Some(d[i * ROWS + j]), &columns(&delta), &y);
    let squares = largest_error(|i, j| (j <= i).then(|| h[offset(i, j)]), &x, &x);
    let bits = c.iter().chain(&d).chain(&h).map(|value| value.to_bits()).collect();
    Ok((products.max(crosses).max(squares), bits))
}

/// Returns a seeded random matrix `[rows, columns]`, row-major, with values of both signs. The magnitudes range from 2^-20 to
/// 2^20: from row to row if `along_depth`, otherwise from column to column.
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

/// Returns the largest |c − p·q| / (‖p‖·‖q‖) over all rows p of P and q of Q. `c(i, j)` is the element to check for row i of P
/// and row j of Q, or `None` if there is none. A NaN counts as an infinite error.
fn largest_error(c: impl Fn(usize, usize) -> Option<f32>, p: &[Vec<f64>], q: &[Vec<f64>]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = |rows: &[Vec<f64>]| rows.iter().map(|row| dot(row, row).sqrt()).collect::<Vec<_>>();
    let (p_norms, q_norms) = (norms(p), norms(q));
    let mut largest = 0.0f64;
    for (row, p_row) in p.iter().enumerate() {
        for (column, q_row) in q.iter().enumerate() {
            let Some(value) = c(row, column) else { continue };
            let error = (f64::from(value) - dot(p_row, q_row)).abs() / (p_norms[row] * q_norms[column]);
            largest = largest.max(if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    largest
}
