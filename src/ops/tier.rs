//! Opening a device, and the choice between its fast and its portable kernels.
//!
//! wgpu calls cooperative matrices experimental, so no device uses them untested. Whoever opens a device does it here: each shape
//! of the fast kernels is compared with products in f64, and the quickest of those that are right becomes the device's fast tier.
//! If none is right, or if the portable kernel is quicker, the device stays with the portable kernels and can say why.
//!
//! The library has no clock and no place for files. A program that has them lends them through [`FrontEnd`].

use std::sync::Arc;

use super::cooperative::{Operand, Output, columns_of, gram, product, rows_of};
use super::gram::{Packed, offset};
use super::matmul::{self, Orientation, Rows};
use crate::Result;
use crate::device::{
    self, AdapterSummary, Choice, Clock, Device, FastShape, FastTier, Gpu, MatrixUnits, Precision, Recorder,
};
use crate::error::{Phrase, phrase};
use crate::tensor::Tensor;

/// What the program around the library lends to a device that it opens. By default it lends nothing.
pub trait FrontEnd {
    /// A clock, by which submissions to a GPU are given a length in seconds and the shapes of the fast tier are timed. Without one
    /// all submissions have the same work, and the first shape that is right is used.
    fn clock(&self) -> Option<Clock> {
        None
    }

    /// The shape that was last passed to [`FrontEnd::remember_shape`] for this key. Such a shape is checked and not timed again.
    fn remembered_shape(&self, _key: &str) -> Option<String> {
        None
    }

    /// Keeps the name of the quickest shape. `key` names the adapter, its driver and the version of the kernels.
    fn remember_shape(&self, _key: &str, _shape: &str) {}
}

/// Lends nothing.
impl FrontEnd for () {}

/// Opens the device that `choice` asks for. With [`Precision::Fast`] its fast kernels are checked, and used if they are right.
///
/// Returns the device, and why it was chosen, as a phrase. Errors: `Error::Input` if no device fits the choice, `Error::Gpu` if
/// it cannot be opened. Fast kernels that fail are no error: [`Gpu::tier`] says what was wrong.
pub async fn open(choice: &Choice, precision: Precision, front_end: &dyn FrontEnd) -> Result<(Device, Phrase)> {
    let (device, reason) = device::open(choice, precision, front_end.clock()).await?;
    if let Device::Gpu(gpu) = &device {
        set_fast_tier(gpu, front_end).await;
    }
    Ok((device, reason))
}

/// All adapters that [`Choice`] can name. Those with matrix units are opened, so that their `tier` tells how the check went.
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

/// The shape that the front end remembers, if it is right, or else the quickest that is. Errors: a phrase that says why none is
/// used.
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
    // An emulated adapter is there for tests, which want the fast kernels however slow they are.
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

/// The shapes that pass the check and agree in every bit, at least one. They must agree because another may be the quickest
/// tomorrow, which must not change a result. Errors: what is wrong with them, as a phrase.
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

/// The quickest of some shapes, with the seconds of its product. Errors: why none of them could be timed, as a phrase.
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

/// Repetitions of a timed product. The first only warms up the device.
const TIMED: usize = 4;

/// The least seconds of a product, by the fast kernels in `shape` or by the portable kernel.
async fn product_seconds(rec: &mut Recorder, shape: Option<&FastShape>, clock: Clock) -> Result<f64> {
    let software = matches!(rec.device(), Device::Gpu(gpu) if gpu.is_software());
    // Several products at a time, so that those on hardware are long beside a wait.
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
                // The device has no fast tier yet, so this takes the portable kernel.
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

/// The largest error that passes the check: of an element, relative to the norms of the row and the column it comes from. The
/// error of a product in f32 is about 1e-7.
const LARGEST_ERROR: f64 = 1e-6;

/// Extents of the products of the check: odd numbers, and more than one block of every shape.
const ROWS: usize = 197;
const COLUMNS: usize = 131;
const DEPTH: usize = 77;

/// Checks a shape. Returns it with its largest error, and the bits of its results. Errors: why it is not right, as a phrase.
async fn check(rec: &mut Recorder, shape: &'static FastShape) -> Result<(FastTier, Vec<u32>), Phrase> {
    match errors(rec, shape).await {
        Ok((error, bits)) if error <= LARGEST_ERROR => Ok((FastTier { shape, error }, bits)),
        Ok((error, _)) => Err(format!("its check found an error of {error:.1e}, more than {LARGEST_ERROR:.0e}").into()),
        Err(error) => Err(phrase!["its check failed: ", error.phrase()]),
    }
}

/// Computes `A·Bᵀ`, `(X − Y)ᵀ·Y` and `XᵀX` by the fast kernels. Returns the largest error, and the bits of the results.
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

/// A matrix of seeded values of either sign. Its rows, or else its columns, have magnitudes from 2^-20 to 2^20.
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

/// The largest |c − p·q| / (‖p‖·‖q‖) over all rows p and q, where `c(row of p, row of q)` is the element to check, if there is one.
/// An element that is not a number counts as an infinite error.
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
