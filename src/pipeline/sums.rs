//! Sums of squares over all chunks of a stream, such as ‖WX‖² of the outputs of a stop. The device computes partial
//! sums, and the host adds them in f64. `pipeline` and `run` use them to measure errors.

use crate::device::{Recorder, Tensor};
use crate::error::{Setting, phrase};
use crate::{Error, Result};

/// The partial sums of several sums, on the device. They are read together after the last chunk, so that a GPU does not
/// wait for the host after each chunk. An entry is the number of the sum, its part, and the partial sums.
#[derive(Default)]
pub(super) struct Sums(Vec<(usize, usize, Tensor)>);

impl Sums {
    /// Adds `partials` to sum number `sum`, over the fitting tokens (`part` 0) or the held-out tokens (`part` 1).
    pub fn add(&mut self, sum: usize, part: usize, partials: Tensor) {
        self.0.push((sum, part, partials));
    }

    /// Waits for the device and returns sums 0 to `count` − 1, each over the fitting tokens and over the held-out
    /// tokens.
    pub async fn read(self, rec: &mut Recorder, count: usize) -> Result<Vec<[f64; 2]>> {
        let mut sums = vec![[0.0; 2]; count];
        let partials: Vec<&Tensor> = self.0.iter().map(|(_, _, partials)| partials).collect();
        let values = rec.read_all(&partials).await?;
        for ((sum, part, _), values) in self.0.iter().zip(values) {
            sums[*sum][*part] += values.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sums)
    }
}

/// Returns `error`/`norm`, or 0 if `error` is 0. Errors: `Error::NotFinite` naming `place`.
pub(super) fn relative(error: f64, norm: f64, place: &str) -> Result<f64> {
    let quotient = if error == 0.0 { 0.0 } else { error / norm };
    if quotient.is_finite() {
        return Ok(quotient);
    }
    Err(Error::NotFinite {
        place: place.to_string(),
        remedy: phrase![
            "the quantized model has broken down; use more bits, smaller groups or ",
            Setting::Alpha.set_to("off"),
        ],
    })
}
