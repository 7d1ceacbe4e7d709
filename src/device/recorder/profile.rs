//! When each kernel ran, by timestamps that the GPU writes before and after every dispatch.

use super::{Recorder, UNIFORM_BLOCKS};
use crate::device::Gpu;
use crate::error::Setting;
use crate::{Error, Result};

/// One dispatch with its times.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Name in `shaders/permutations`.
    pub kernel: &'static str,
    /// When it began, in seconds on the GPU's clock. The zero of that clock is arbitrary.
    pub start: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Estimated floating-point operations.
    pub work: f64,
}

impl Recorder {
    /// Times every dispatch from now on. Each gets a compute pass of its own, which makes short ones slower. On the CPU nothing is
    /// timed.
    ///
    /// Errors: `Error::Input` if the GPU has no timestamps.
    pub fn start_profile(&mut self) -> Result<()> {
        if let Some(r) = &mut self.recording {
            r.submit()?;
            r.profile = Some(Profile::new(&r.gpu)?);
        }
        Ok(())
    }

    /// Waits for all recorded commands and returns the times of their dispatches, since [`Recorder::start_profile`] or the last
    /// call. Errors: as [`Recorder::read`].
    pub async fn kernel_times(&mut self) -> Result<Vec<KernelTime>> {
        self.finish().await?;
        match &mut self.recording {
            Some(r) => r.profile.as_mut().map_or(Ok(Vec::new()), |profile| profile.take_times(&r.gpu)),
            None => Ok(Vec::new()),
        }
    }
}

/// The timestamps of all dispatches that nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Profile {
    /// Seconds per tick of the GPU's clock.
    period: f64,
    /// The dispatches that are recorded and not submitted.
    recorded: Option<Batch>,
    /// The dispatches of each submission, with the buffer that gets their timestamps.
    submitted: Vec<(wgpu::Buffer, Vec<TimedDispatch>)>,
}

/// The dispatches of one submission: query 2·i is the beginning of dispatch i, query 2·i + 1 its end.
#[derive(Debug)]
struct Batch {
    queries: wgpu::QuerySet,
    dispatches: Vec<TimedDispatch>,
}

#[derive(Debug)]
struct TimedDispatch {
    kernel: &'static str,
    work: f64,
}

impl Profile {
    fn new(gpu: &Gpu) -> Result<Self> {
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            let found = format!("{}, which has no timestamps", gpu.name());
            return Err(Error::input(Setting::Profile, found, "a GPU that can time its kernels", "leave it out"));
        }
        let period = f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
        Ok(Self { period, recorded: None, submitted: Vec::new() })
    }

    /// Adds a dispatch. Returns the query set for its compute pass and the first of its two queries.
    pub(super) fn next(&mut self, gpu: &Gpu, kernel: &'static str, work: f64) -> (wgpu::QuerySet, u32) {
        let batch = self.recorded.get_or_insert_with(|| Batch {
            queries: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * UNIFORM_BLOCKS as u32,
            }),
            dispatches: Vec::new(),
        });
        let first = 2 * batch.dispatches.len() as u32;
        batch.dispatches.push(TimedDispatch { kernel, work });
        (batch.queries.clone(), first)
    }

    /// Records a copy of the timestamps into a buffer that the host can map. It must be the last command of a submission.
    pub(super) fn resolve(&mut self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) {
        let Some(Batch { queries, dispatches }) = self.recorded.take() else { return };
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

    /// Takes the times of all submitted dispatches, which must be finished.
    fn take_times(&mut self, gpu: &Gpu) -> Result<Vec<KernelTime>> {
        for (buffer, _) in &self.submitted {
            buffer.map_async(wgpu::MapMode::Read, .., |_| {});
        }
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| gpu.error(error))?;
        let mut times = Vec::new();
        for (buffer, dispatches) in self.submitted.drain(..) {
            let bytes = buffer.get_mapped_range(..).map_err(|error| gpu.error(error))?;
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
            for (TimedDispatch { kernel, work }, ticks) in dispatches.into_iter().zip(ticks.chunks_exact(2)) {
                let start = ticks[0] as f64 * self.period;
                let seconds = ticks[1].saturating_sub(ticks[0]) as f64 * self.period;
                times.push(KernelTime { kernel, start, seconds, work });
            }
        }
        Ok(times)
    }
}
