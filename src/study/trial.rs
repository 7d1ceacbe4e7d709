//! What runs on random weights and random tokens need: they show how long a run takes, without a model and without a text.

use futures::future::LocalBoxFuture;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::device::Recorder;
use crate::observer::Observer;
use crate::ops::matmul::{Orientation, matmul};
use crate::pipeline::Output;
use crate::quant::QuantizeOptions;
use crate::stored::StoredLinear;

/// Drops every layer.
pub struct NoOutput;

impl Output for NoOutput {
    fn put_tensor(&mut self, _: String, _: Vec<f32>) -> Result<()> {
        Ok(())
    }

    fn put(&mut self, _: StoredLinear) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// As many calibration windows as `options` ask for, of random tokens below `vocabulary`.
pub fn random_windows(options: &QuantizeOptions, vocabulary: usize) -> Vec<Vec<u32>> {
    let mut dice = ChaCha8Rng::seed_from_u64(options.seed);
    let mut window = || (0..options.seq_len).map(|_| dice.random_range(0..vocabulary as u32)).collect();
    (0..options.samples).map(|_| window()).collect()
}

/// Rows and columns of the matrices in [`product_rate`].
const WIDTH: usize = 1024;
/// How long to measure, in seconds.
const LONG_ENOUGH: f64 = 0.5;

/// Operations per second of f32 products of 1024 × 1024 matrices on the device of `rec`. This is the rate of the fastest of several
/// products, after a first one that warms up the device. Infinite if the clock of `observer` stands still.
///
/// Errors: `Error::Cancelled`, and what the device reports.
pub async fn product_rate(rec: &mut Recorder, observer: &dyn Observer) -> Result<f64> {
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|index| (index % 251) as f32 * 0.01 - 1.25).collect();
    let (a, b) = (rec.upload(&[WIDTH, WIDTH], values.clone())?, rec.upload(&[WIDTH, WIDTH], values)?);
    let mut seconds_of_one = async || -> Result<f64> {
        observer.go_on()?;
        let since = observer.seconds();
        matmul(rec, Orientation::Nt, &a, &b)?;
        rec.finish().await?;
        Ok(observer.seconds() - since)
    };
    seconds_of_one().await?;
    let (mut least, begun) = (seconds_of_one().await?, observer.seconds());
    while least > 0.0 && observer.seconds() - begun < LONG_ENOUGH {
        least = least.min(seconds_of_one().await?);
    }
    Ok(2.0 * (WIDTH as f64).powi(3) / least)
}
