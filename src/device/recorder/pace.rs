//! How much work goes into one submission.
//!
//! A submission has a cost of its own, so it should not be short. If it is long, the screen that shares the GPU stands still, and
//! the driver's watchdog may end the program. So a recorder aims at a fixed time per submission, and needs to know how fast the
//! GPU works: this is measured over the whole run, whenever the host has waited for all that was submitted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::device::Clock;

/// Seconds per submission.
const SECONDS: f64 = 0.075;
/// Floating-point operations per submission while the speed of the GPU is unknown. Without a clock it stays unknown.
const FIRST_WORK: f64 = 1e11;
/// Measurements over fewer operations than this are ignored.
const LEAST_WORK: f64 = 1e9;

/// The speed at which a GPU has worked of late. All recorders of the GPU share it.
#[derive(Debug)]
pub(in crate::device) struct Pace {
    clock: Option<Clock>,
    /// Floating-point operations per second, as the bits of an f64. 0 while unknown.
    speed: AtomicU64,
}

impl Pace {
    /// An unknown pace. Without a clock it is never measured.
    pub(in crate::device) fn new(clock: Option<Clock>) -> Self {
        Self { clock, speed: AtomicU64::new(0) }
    }

    /// Floating-point operations that make a submission long enough.
    pub(super) fn work_per_submission(&self) -> f64 {
        self.speed().map_or(FIRST_WORK, |speed| speed * SECONDS)
    }

    fn speed(&self) -> Option<f64> {
        Some(f64::from_bits(self.speed.load(Relaxed))).filter(|&speed| speed > 0.0)
    }

    /// Takes in that `work` operations took `seconds`. A faster pace replaces the old one. A slower pace counts for a tenth,
    /// because the GPU may have waited for the host in that time.
    fn update(&self, work: f64, seconds: f64) {
        if work < LEAST_WORK || seconds <= 0.0 {
            return;
        }
        let now = work / seconds;
        let speed = self.speed().filter(|&speed| speed > now).map_or(now, |speed| 0.9 * speed + 0.1 * now);
        self.speed.store(speed.to_bits(), Relaxed);
    }
}

/// What a recorder has submitted since it last waited for everything.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Floating-point operations.
    work: f64,
    /// When the first of it was submitted, by the clock of the pace.
    since: Option<f64>,
}

impl Unfinished {
    /// Adds a submission of `work` operations that begins now.
    pub(super) fn add(&mut self, work: f64, pace: &Pace) {
        self.work += work;
        self.since = self.since.or_else(|| pace.clock.map(|seconds| seconds()));
    }

    /// Measures the pace of what was submitted, all of which is finished now, and begins anew.
    pub(super) fn finish(&mut self, pace: &Pace) {
        let Self { work, since } = std::mem::take(self);
        if let (Some(since), Some(seconds)) = (since, pace.clock) {
            pace.update(work, seconds() - since);
        }
    }
}
