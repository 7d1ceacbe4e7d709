//! How fast a device is, and how much memory a program took.

use std::collections::BTreeMap;
use std::time::Instant;

use aquatint::Result;
use aquatint::device::Recorder;
use aquatint::ops::matmul::{Orientation, matmul};
use aquatint::record::Phase;

/// Width of the matrices of the measurement.
const WIDTH: usize = 1024;
/// How long to measure, in seconds.
const LONG_ENOUGH: f64 = 0.5;

/// The rate of f32 matrix products of 1024 × 1024 on the device, in operations per second: the fastest of some, after a
/// first one that warms up.
pub fn product_rate(rec: &mut Recorder) -> Result<f64> {
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|index| (index % 251) as f32 * 0.01 - 1.25).collect();
    let (a, b) = (rec.upload(&[WIDTH, WIDTH], values.clone())?, rec.upload(&[WIDTH, WIDTH], values)?);
    let mut once = || -> Result<f64> {
        let since = Instant::now();
        matmul(rec, Orientation::Nt, &a, &b)?;
        pollster::block_on(rec.finish())?;
        Ok(since.elapsed().as_secs_f64())
    };
    once()?;
    let (mut least, begun) = (once()?, Instant::now());
    while begun.elapsed().as_secs_f64() < LONG_ENOUGH {
        least = least.min(once()?);
    }
    Ok(2.0 * (WIDTH as f64).powi(3) / least)
}

/// Operations as a phrase: 7.1 Tflop.
pub fn operations(count: f64) -> String {
    let units = ["flop", "kflop", "Mflop", "Gflop", "Tflop", "Pflop", "Eflop"];
    let step = if count < 1.0 { 0 } else { ((count.log10() / 3.0) as usize).min(units.len() - 1) };
    format!("{:.3} {}", count / 1000f64.powi(step as i32), units[step])
}

/// The work of each phase in order, as a phrase, and in all.
pub fn summary(work: &BTreeMap<Phase, f64>) -> String {
    let parts: Vec<String> =
        work.iter().map(|(phase, count)| format!("{} {}", phase.label(), operations(*count))).collect();
    parts.join(", ")
}

/// The most memory that this process has held, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// The memory that this process holds and no file, in bytes, where the system tells.
pub fn anonymous_memory() -> Option<u64> {
    status("RssAnon:")
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
