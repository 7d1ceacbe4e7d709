//! Squared norms of a group's outputs, summed on the device.

use crate::Result;
use crate::device::{Recorder, Tensor};

/// Partial sums that are read when everything is on its way, so that a GPU does not wait for the host after each chunk.
#[derive(Default)]
pub(super) struct Sums(Vec<(usize, usize, Tensor)>);

impl Sums {
    /// Adds `partials` to sum number `sum`, over the tokens to fit on (`part` 0) or those held out (1).
    pub fn add(&mut self, sum: usize, part: usize, partials: Tensor) {
        self.0.push((sum, part, partials));
    }

    /// Waits for the first `count` sums.
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
