//! The common code of the benches: opening a device, measuring its limits, timing an operation, and printing a Markdown table.
//!
//! Each run first measures the machine's limits, so that every rate can be compared with a limit.
#![allow(dead_code)] // no bench uses all of it

use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Instant;

use aquatint::Result;
use aquatint::device::{Choice, Clock, Device, Precision, Recorder, Tensor, adapters};
use aquatint::ops::matmul::{Orientation, matmul};
use aquatint::ops::tier::{self, FrontEnd};
use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use pollster::block_on;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Seconds of one batch of repetitions. It is long enough that the wait for the GPU at its end does not matter.
const BATCH_SECONDS: f64 = 0.1;
/// The most batches of a measurement. The fastest one counts.
const BATCHES: usize = 7;
/// No batch is started after this many seconds.
const BUDGET_SECONDS: f64 = 1.0;
/// The bytes of the copy that measures the copy rate. No cache is as large.
const COPY_BYTES: usize = 256 << 20;

/// The front end of a bench. It has a clock, and it remembers no shapes of the fast tier, so they are timed in every run.
struct Bench;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl FrontEnd for Bench {
    fn clock(&self) -> Option<Clock> {
        Some(|| START.elapsed().as_secs_f64())
    }
}

/// Opens the device called `name` with the kernels of `precision`, and prints its description. Errors: as [`tier::open`].
pub fn open(name: &str, precision: Precision) -> Result<Device> {
    let Ok(choice) = name.parse::<Choice>();
    let (device, _) = block_on(tier::open(&choice, precision, &Bench))?;
    let threads = rayon::current_num_threads();
    let driver = block_on(adapters()).into_iter().find(|adapter| adapter.name == device.name());
    match (&device, driver) {
        (Device::Cpu, _) => println!("Device: cpu, {threads} threads"),
        (_, Some(adapter)) => println!("Device: {} ({}, {})", adapter.name, adapter.backend, adapter.driver),
        (_, None) => println!("Device: {}", device.name()),
    }
    if let Device::Gpu(gpu) = &device {
        println!("Kernels: {}", gpu.tier());
    }
    Ok(device)
}

/// Returns the exit code of a bench. An error is printed to standard error.
pub fn exit(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns seeded random values, uniform in [-scale, scale).
pub fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-scale..scale)).collect()
}

/// Uploads a random tensor, uniform in [-scale, scale).
pub fn tensor(rec: &mut Recorder, shape: &[usize], scale: f32) -> Result<Tensor> {
    let len = shape.iter().product();
    rec.upload(shape, random(len as u64, len, scale))
}

/// Returns the seconds of one call of `op`: the mean of the fastest batch of calls, after a warm-up call.
pub fn seconds(rec: &mut Recorder, mut op: impl FnMut(&mut Recorder) -> Result<()>) -> Result<f64> {
    op(rec)?;
    block_on(rec.finish())?;
    let started = Instant::now();
    let mut batch = |rec: &mut Recorder, repetitions: usize| -> Result<f64> {
        let started = Instant::now();
        for _ in 0..repetitions {
            op(rec)?;
        }
        block_on(rec.finish())?;
        Ok(started.elapsed().as_secs_f64() / repetitions as f64)
    };
    let mut best = batch(rec, 1)?;
    let repetitions = (BATCH_SECONDS / best).ceil().clamp(1.0, 1000.0) as usize;
    for _ in 0..BATCHES {
        if started.elapsed().as_secs_f64() > BUDGET_SECONDS {
            break;
        }
        best = best.min(batch(rec, repetitions)?);
    }
    Ok(best)
}

/// Measures the floating-point operations per second of a large product, with faer on the CPU and with our own kernel on a GPU.
pub fn matmul_limit(rec: &mut Recorder, quick: bool) -> Result<f64> {
    let shapes = match (rec.device(), quick) {
        (Device::Cpu, false) => vec![[2048, 2048, 2048], [4096, 4096, 1024]],
        (Device::Gpu(_), false) => vec![[4096, 4096, 4096]],
        (Device::Cpu, true) => vec![[1024, 1024, 1024]],
        (Device::Gpu(_), true) => vec![[512, 512, 512]],
    };
    let mut best = 0.0f64;
    for [m, n, k] in shapes {
        let work = 2.0 * (m * n * k) as f64;
        let taken = match rec.device() {
            Device::Cpu => {
                let (a, b, mut c) = (random(1, m * k, 1.0), random(2, k * n, 1.0), vec![0.0; m * n]);
                let a = MatRef::from_row_major_slice(&a, m, k);
                let b = MatRef::from_row_major_slice(&b, k, n);
                seconds(rec, |_| {
                    let c = MatMut::from_row_major_slice_mut(&mut c, m, n);
                    product(c, Accum::Replace, a, b, 1.0, Par::rayon(0));
                    Ok(())
                })?
            }
            Device::Gpu(_) => {
                let (a, b) = (tensor(rec, &[m, k], 1.0)?, tensor(rec, &[n, k], 1.0)?);
                seconds(rec, |rec| matmul(rec, Orientation::Nt, &a, &b).map(drop))?
            }
        };
        best = best.max(work / taken);
    }
    Ok(best)
}

/// Measures the bytes per second of a large copy. Bytes that are read and bytes that are written both count.
pub fn copy_limit(rec: &mut Recorder, quick: bool) -> Result<f64> {
    let wanted = if quick { COPY_BYTES / 4 } else { COPY_BYTES };
    let bytes = rec.device().largest_array().min(wanted as u64) as usize;
    let taken = match rec.device() {
        Device::Cpu => {
            let (from, mut to) = (vec![1.0f32; bytes / 4], vec![0.0f32; bytes / 4]);
            let piece = from.len().div_ceil(rayon::current_num_threads());
            seconds(rec, |_| {
                to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
                Ok(())
            })?
        }
        Device::Gpu(_) => {
            let from: Tensor = rec.zeros(&[bytes / 4])?;
            seconds(rec, |rec| rec.duplicate(&from).map(drop))?
        }
    };
    Ok(2.0 * bytes as f64 / taken)
}

/// Formats a duration: `1.23 ms`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Formats a quotient in percent.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// A Markdown table. Columns of words are aligned left, columns of numbers right.
pub struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
    labels: usize,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// Creates a table with these headings. The first `labels` columns are words, the others are numbers.
    pub fn new(headings: [&str; COLUMNS], labels: usize) -> Self {
        Self { rows: vec![headings.map(str::to_owned)], labels }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells);
    }

    /// Prints the table on standard output.
    pub fn print(&self) {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
        let widths: [usize; COLUMNS] = std::array::from_fn(width);
        for (index, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
                if column < self.labels { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") }
            });
            println!("|{}", cells.collect::<String>());
            if index == 0 {
                let rules = widths.iter().enumerate().map(|(column, width)| {
                    let rule = "-".repeat(*width);
                    if column < self.labels { format!(" {rule} |") } else { format!(" {rule}:|") }
                });
                println!("|{}", rules.collect::<String>());
            }
        }
    }
}
