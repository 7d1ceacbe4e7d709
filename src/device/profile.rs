//! When each kernel ran: timestamps that the GPU writes before and after every dispatch.

use super::gpu::Gpu;
use crate::error::Setting;
use crate::{Error, Result};

/// A dispatch as the GPU saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Name in `shaders/permutations`.
    pub kernel: &'static str,
    /// Seconds on the GPU's clock, which begins anywhere.
    pub start: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Estimated floating-point operations.
    pub work: f64,
}

/// Dispatches that have asked for timestamps.
#[derive(Debug)]
pub(super) struct Profile {
    /// Timestamps that fit one query set, two to a dispatch.
    capacity: u32,
    /// Seconds per tick.
    period: f64,
    open: Option<Batch>,
    submitted: Vec<(wgpu::Buffer, Vec<(&'static str, f64)>)>,
}

/// The dispatches of one submission.
#[derive(Debug)]
struct Batch {
    queries: wgpu::QuerySet,
    dispatches: Vec<(&'static str, f64)>,
}

impl Profile {
    /// For submissions of at most `dispatches`. Errors: `Error::Input` if the GPU has no timestamps.
    pub(super) fn new(gpu: &Gpu, dispatches: usize) -> Result<Self> {
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            let found = format!("{}, which has no timestamps", gpu.name());
            return Err(Error::input(Setting::Profile, found, "a GPU that can time its kernels", "leave it out"));
        }
        let period = f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
        Ok(Self { capacity: 2 * dispatches as u32, period, open: None, submitted: Vec::new() })
    }

    /// The queries for the pass of the next dispatch, and the first of the two.
    pub(super) fn next(&mut self, gpu: &Gpu, kernel: &'static str, work: f64) -> (wgpu::QuerySet, u32) {
        let batch = self.open.get_or_insert_with(|| Batch {
            queries: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: self.capacity,
            }),
            dispatches: Vec::new(),
        });
        let first = 2 * batch.dispatches.len() as u32;
        batch.dispatches.push((kernel, work));
        (batch.queries.clone(), first)
    }

    /// Has the timestamps of the submission written to where they can be read.
    pub(super) fn resolve(&mut self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) {
        let Some(Batch { queries, dispatches }) = self.open.take() else { return };
        let count = 2 * dispatches.len() as u32;
        let size = u64::from(count) * 8;
        let buffer = |usage| {
            let descriptor = wgpu::BufferDescriptor { label: Some("profile"), size, usage, mapped_at_creation: false };
            gpu.device.create_buffer(&descriptor)
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let readable = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &readable, 0, size);
        self.submitted.push((readable, dispatches));
    }

    /// The times of everything submitted, which must be done.
    pub(super) fn take(&mut self, gpu: &Gpu) -> Result<Vec<KernelTime>> {
        let refused = |message: String| Error::Gpu { device: gpu.name().to_string(), message };
        for (buffer, _) in &self.submitted {
            buffer.map_async(wgpu::MapMode::Read, .., |_| {});
        }
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| refused(error.to_string()))?;
        let mut times = Vec::new();
        for (buffer, dispatches) in self.submitted.drain(..) {
            let bytes = buffer.get_mapped_range(..).map_err(|error| refused(error.to_string()))?;
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
            for ((kernel, work), ticks) in dispatches.into_iter().zip(ticks.chunks_exact(2)) {
                let start = ticks[0] as f64 * self.period;
                let seconds = ticks[1].saturating_sub(ticks[0]) as f64 * self.period;
                times.push(KernelTime { kernel, start, seconds, work });
            }
        }
        Ok(times)
    }
}
