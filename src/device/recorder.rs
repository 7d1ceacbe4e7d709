//! The recorder: ops append to it, and nothing waits until a value is read back.
//!
//! On the CPU an op runs at once. On a GPU its dispatches go into one compute pass of one command encoder, their
//! uniforms into one buffer bound with dynamic offsets; the pass is submitted when something is read, when the uniform
//! buffer is full, or when enough work has gathered to keep the GPU busy without tripping a watchdog.

use std::sync::Arc;
use std::time::Instant;

use super::fast::Shape;
use super::gpu::{Buffer, Gpu};
use super::profile::{KernelTime, Profile};
use super::{Device, Memory};
use crate::tensor::{Element, Tensor, limit_free, recycled};
use crate::{Error, Result};

/// Uniform blocks are this far apart, the largest alignment that WebGPU may ask for.
const UNIFORM_STRIDE: usize = 256;
/// Dispatches per submission at most: the length of the uniform buffer in blocks.
const UNIFORM_BLOCKS: usize = 512;
/// Seconds of work per submission, about: long enough that submitting is free, too short for a watchdog, and a GPU shared with a
/// screen stays alive.
const SECONDS_PER_SUBMISSION: f64 = 0.075;
/// Floating-point operations per submission while nothing is known of a GPU's pace, and in browsers, which hide it.
const FIRST_SUBMISSIONS: f64 = 1e11;

/// Bytes on their way to a GPU that the host does not wait for.
const UNDERWAY: u64 = 256 << 20;

/// Extents from which on products go to the fast tier: splitting the operands costs less than it brings.
const FAST_FROM: usize = 128;

/// Appends ops to a device. Make one per task; tensors may move between recorders of the same device.
#[derive(Debug)]
pub struct Recorder {
    device: Device,
    memory: Memory,
    fast_from: usize,
    recording: Option<Recording>,
}

#[derive(Debug)]
struct Recording {
    gpu: Arc<Gpu>,
    uniforms: wgpu::Buffer,
    uniform_bytes: Vec<u8>,
    pending: Option<Pending>,
    /// Operations that are recorded and not submitted.
    work: f64,
    /// Operations that were submitted since the last wait, and when the first of them was; never in a browser.
    submitted: (f64, Option<Instant>),
    /// Flags that nobody has looked at yet, each with the error that it raises.
    flags: Vec<(Tensor<u32>, Error)>,
    profile: Option<Profile>,
    /// Bytes written since [`Recording::last_written`].
    written: u64,
    last_written: Option<wgpu::SubmissionIndex>,
}

/// What is recorded and not yet submitted. Copies go between passes, so the pass opens at the next dispatch.
#[derive(Debug)]
struct Pending {
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
}

/// One dispatch: which kernel on which buffers, over how many workgroups.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    /// Name in `shaders/permutations`.
    pub kernel: &'static str,
    /// The uniform block, at most 256 bytes.
    pub params: &'a [u8],
    /// Bindings 1…: read-only storage.
    pub inputs: &'a [&'a Buffer],
    /// The bindings after them: read-write storage. No buffer may stand in both lists, or twice in this one.
    pub outputs: &'a [&'a Buffer],
    /// Number of workgroups per axis.
    pub workgroups: [usize; 3],
    /// Estimated floating-point operations.
    pub work: f64,
}

impl Recorder {
    /// An empty recording for `device`.
    pub fn new(device: &Device) -> Self {
        let recording = match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(Recording::new(gpu.clone())),
        };
        Self { device: device.clone(), memory: Memory::default(), fast_from: FAST_FROM, recording }
    }

    /// What the run may hold.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Sets what the run may hold. The limit of a GPU holds for all its recorders.
    pub fn set_memory(&mut self, memory: Memory) {
        if let Device::Gpu(gpu) = &self.device {
            gpu.limit(memory.device.unwrap_or(u64::MAX));
        }
        self.memory = memory;
    }

    /// The device recorded for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether ops must take their GPU branch.
    pub(crate) fn is_gpu(&self) -> bool {
        self.recording.is_some()
    }

    /// Gives arrays back that are not in use: on a GPU before more than `bytes` are held, on the CPU beyond `spare` bytes.
    pub(crate) fn keep_to(&mut self, bytes: u64, spare: u64) {
        match &self.device {
            Device::Cpu => limit_free(spare),
            Device::Gpu(gpu) => gpu.tidy_above(bytes),
        }
    }

    /// Has products go to the fast tier, where the device has it, whose extents all are `extent` or more: 0 is all of them,
    /// `usize::MAX` none.
    pub fn fast_from(&mut self, extent: usize) {
        self.fast_from = extent;
    }

    /// The shape of the fast tier for a product of these extents, if it should go there.
    pub(crate) fn fast(&self, extents: [usize; 3]) -> Option<&'static Shape> {
        let Device::Gpu(gpu) = &self.device else { return None };
        let least = self.fast_from.max(1);
        gpu.fast().filter(|_| extents.iter().all(|&extent| extent >= least))
    }

    /// A tensor of undefined contents.
    pub fn empty<T: Element>(&mut self, shape: &[usize]) -> Result<Tensor<T>> {
        let len: usize = shape.iter().product();
        match &self.recording {
            None => Ok(Tensor::on_host(shape, recycled(len))),
            Some(r) => Ok(Tensor::on_gpu(shape, r.gpu.allocate(len as u64 * 4, &format!("an array of {shape:?}"))?)),
        }
    }

    /// A tensor of zeros.
    pub fn zeros<T: Element>(&mut self, shape: &[usize]) -> Result<Tensor<T>> {
        let mut tensor: Tensor<T> = self.empty(shape)?;
        match &mut self.recording {
            None => tensor.host_mut().fill(T::default()),
            Some(r) => {
                r.close_pass();
                r.encoder().clear_buffer(tensor.buffer().raw(), 0, None);
            }
        }
        Ok(tensor)
    }

    /// A tensor of these values, in row-major order. Errors: `Error::Shape` if their number does not fit the shape.
    pub fn upload<T: Element>(&mut self, shape: &[usize], values: Vec<T>) -> Result<Tensor<T>> {
        if self.recording.is_some() || shape.iter().product::<usize>() != values.len() {
            return self.upload_slice(shape, &values);
        }
        Ok(Tensor::on_host(shape, values))
    }

    /// The same of values that stay where they are.
    pub fn upload_slice<T: Element>(&mut self, shape: &[usize], values: &[T]) -> Result<Tensor<T>> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::shape("upload", format!("{} values for the shape {shape:?}", values.len())));
        }
        let mut tensor: Tensor<T> = self.empty(shape)?;
        if self.recording.is_none() {
            tensor.host_mut().copy_from_slice(values);
            return Ok(tensor);
        }
        let Some(r) = &mut self.recording else { unreachable!("checked above") };
        r.write(tensor.buffer(), 0, bytemuck::cast_slice(values))?;
        Ok(tensor)
    }

    /// Little-endian bytes as words, four to each; where the last is not full, zeros follow.
    pub fn upload_bytes(&mut self, bytes: &[u8]) -> Result<Tensor<u32>> {
        let (whole, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let last = if rest.is_empty() { &[][..] } else { &[last] };
        let shape = [whole.len() + last.len()];
        if self.recording.is_none() {
            let words = whole.iter().chain(last).map(|&word| u32::from_le_bytes(word)).collect();
            return Ok(Tensor::on_host(&shape, words));
        }
        let tensor: Tensor<u32> = self.empty(&shape)?;
        let Some(r) = &mut self.recording else { unreachable!("checked above") };
        r.write(tensor.buffer(), 0, whole.as_flattened())?;
        r.write(tensor.buffer(), whole.len() as u64 * 4, last.as_flattened())?;
        Ok(tensor)
    }

    /// A copy of `tensor`.
    pub fn duplicate<T: Element>(&mut self, tensor: &Tensor<T>) -> Result<Tensor<T>> {
        if self.recording.is_none() {
            return Ok(Tensor::on_host(tensor.shape(), tensor.host().to_vec()));
        }
        let copy: Tensor<T> = self.empty(tensor.shape())?;
        self.copy(tensor, 0, &copy, 0, tensor.len());
        Ok(copy)
    }

    /// Rows `start..start + count` of a matrix as a new one.
    pub fn copy_rows<T: Element>(&mut self, from: &Tensor<T>, start: usize, count: usize) -> Result<Tensor<T>> {
        let [rows, columns] = from.matrix("copy_rows")?;
        if start + count > rows {
            return Err(Error::shape("copy_rows", format!("rows {start}..{} of {rows}", start + count)));
        }
        if self.recording.is_none() {
            let values = from.host()[start * columns..(start + count) * columns].to_vec();
            return Ok(Tensor::on_host(&[count, columns], values));
        }
        let copy: Tensor<T> = self.empty(&[count, columns])?;
        self.copy(from, start * columns, &copy, 0, count * columns);
        Ok(copy)
    }

    /// Overwrites rows of `to`, from `start` on, with all rows of `from`.
    pub fn write_rows<T: Element>(&mut self, from: &Tensor<T>, to: &mut Tensor<T>, start: usize) -> Result<()> {
        let ([count, columns], [rows, to_columns]) = (from.matrix("write_rows")?, to.matrix("write_rows")?);
        if columns != to_columns || start + count > rows {
            let detail = format!("{:?} into {:?} at row {start}", from.shape(), to.shape());
            return Err(Error::shape("write_rows", detail));
        }
        if self.recording.is_none() {
            to.host_mut()[start * columns..(start + count) * columns].copy_from_slice(from.host());
        } else {
            self.copy(from, 0, to, start * columns, count * columns);
        }
        Ok(())
    }

    /// Records a copy of `len` elements between GPU tensors.
    fn copy<T: Element>(&mut self, from: &Tensor<T>, from_start: usize, to: &Tensor<T>, to_start: usize, len: usize) {
        let recording = self.recording.as_mut().expect("both tensors are on a GPU");
        recording.close_pass();
        let [from_start, to_start, len] = [from_start, to_start, len].map(|elements| elements as u64 * 4);
        let (from, to) = (from.buffer().raw(), to.buffer().raw());
        recording.encoder().copy_buffer_to_buffer(from, from_start, to, to_start, len);
    }

    /// Makes it an error if an op has set `flag`, of one element, to anything but 0.
    ///
    /// Errors: `error`, on the CPU. On a GPU the next wait of this recorder returns it in place of a value.
    pub fn fail_if(&mut self, flag: Tensor<u32>, error: Error) -> Result<()> {
        flag.expect_shape("fail_if", &[1])?;
        match &mut self.recording {
            Some(r) => r.flags.push((flag, error)),
            None if flag.host() == [0] => {}
            None => return Err(error),
        }
        Ok(())
    }

    /// Waits for all that was recorded and returns the elements of `tensor`.
    ///
    /// Errors: whatever the GPU reported since the last wait, and the first of [`Recorder::fail_if`] since then.
    pub async fn read<T: Element>(&mut self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        if self.recording.is_none() {
            return Ok(tensor.host().to_vec());
        }
        Ok(self.read_all(&[tensor]).await?.swap_remove(0))
    }

    /// The elements of each of `tensors`, after one wait. Errors: as [`Recorder::read`].
    pub async fn read_all<T: Element>(&mut self, tensors: &[&Tensor<T>]) -> Result<Vec<Vec<T>>> {
        match &mut self.recording {
            None => Ok(tensors.iter().map(|tensor| tensor.host().to_vec()).collect()),
            Some(_) if tensors.iter().all(|tensor| tensor.is_empty()) => Ok(vec![Vec::new(); tensors.len()]),
            Some(r) => r.read(tensors).await,
        }
    }

    /// Submits what was recorded, and has the elements of `tensor` travel to the host while more is recorded.
    pub fn begin_read(&mut self, tensor: &Tensor) -> Result<Reading> {
        match &mut self.recording {
            None => Ok(Reading(Source::Here(tensor.host().to_vec()))),
            Some(_) if tensor.is_empty() => Ok(Reading(Source::Here(Vec::new()))),
            Some(r) => {
                Ok(Reading(Source::Gpu(r.begin_read(&[(tensor.buffer().raw().clone(), tensor.len() as u64 * 4)])?)))
            }
        }
    }

    /// Waits for what [`Recorder::begin_read`] began, and for nothing that was recorded since. Flags stay up for the next wait.
    ///
    /// Errors: whatever the GPU reported since the last wait.
    pub async fn end_read(&mut self, reading: Reading) -> Result<Vec<f32>> {
        match (reading.0, &mut self.recording) {
            (Source::Here(values), _) => Ok(values),
            (Source::Gpu(staged), Some(r)) => r.end_read(staged).await?.with_bytes(bytemuck::pod_collect_to_vec),
            (Source::Gpu(_), None) => unreachable!("a recorder of the CPU began no reading of a GPU"),
        }
    }

    /// Submits what was recorded, without waiting.
    pub fn submit(&mut self) -> Result<()> {
        self.recording.as_mut().map_or(Ok(()), |r| r.submit().map(|_| ()))
    }

    /// Submits what was recorded and waits for it. Errors: as [`Recorder::read`].
    pub async fn finish(&mut self) -> Result<()> {
        if self.is_gpu() {
            let marker = self.zeros::<u32>(&[1])?;
            self.read(&marker).await?;
        }
        Ok(())
    }

    /// Gives buffers that nobody owns back to the driver, at a point where sizes change.
    pub fn trim(&mut self) {
        if let Some(r) = &self.recording {
            r.gpu.trim();
        }
    }

    /// Has every dispatch timed from now on, each in a pass of its own, which makes short ones slower. On the CPU nothing is timed.
    ///
    /// Errors: `Error::Input` if the GPU has no timestamps.
    pub fn profile(&mut self) -> Result<()> {
        if let Some(r) = &mut self.recording {
            r.submit()?;
            r.profile = Some(Profile::new(&r.gpu, UNIFORM_BLOCKS)?);
        }
        Ok(())
    }

    /// Waits for all that was recorded; when its kernels ran, since [`Recorder::profile`] or the last call.
    pub async fn kernel_times(&mut self) -> Result<Vec<KernelTime>> {
        self.finish().await?;
        match &mut self.recording {
            Some(Recording { gpu, profile: Some(profile), .. }) => profile.take(gpu),
            _ => Ok(Vec::new()),
        }
    }

    /// Records one dispatch. Only called in the GPU branch of an op.
    pub(crate) fn dispatch(&mut self, dispatch: Dispatch<'_>) -> Result<()> {
        let recording = self.recording.as_mut().expect("dispatch is only called on a GPU");
        recording.dispatch(dispatch)
    }
}

impl Recording {
    fn new(gpu: Arc<Gpu>) -> Self {
        let uniforms = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("uniforms"),
            size: (UNIFORM_STRIDE * UNIFORM_BLOCKS) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self {
            gpu,
            uniforms,
            uniform_bytes: Vec::new(),
            pending: None,
            work: 0.0,
            submitted: (0.0, None),
            flags: Vec::new(),
            profile: None,
            written: 0,
            last_written: None,
        }
    }

    fn open(&mut self) -> &mut Pending {
        let gpu = &self.gpu;
        self.pending.get_or_insert_with(|| Pending {
            pass: None,
            encoder: gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()),
        })
    }

    /// The encoder between passes, for copies and clears.
    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        &mut self.open().encoder
    }

    fn close_pass(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.pass = None;
        }
    }

    fn dispatch(&mut self, d: Dispatch<'_>) -> Result<()> {
        if d.workgroups.contains(&0) {
            return Ok(());
        }
        let limit = self.gpu.limits().max_compute_workgroups_per_dimension as usize;
        if d.workgroups.iter().any(|&count| count > limit) {
            return Err(Error::shape(d.kernel, format!("{:?} workgroups, the device allows {limit}", d.workgroups)));
        }
        let pipeline = self.gpu.pipeline(d.kernel, d.inputs.len(), d.outputs.len())?;
        let offset = self.uniform_bytes.len();
        self.uniform_bytes.extend_from_slice(d.params);
        self.uniform_bytes.resize(offset + UNIFORM_STRIDE, 0);
        let uniform = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.uniforms,
            offset: 0,
            size: wgpu::BufferSize::new(UNIFORM_STRIDE as u64),
        });
        let storage = d.inputs.iter().chain(d.outputs).map(|buffer| buffer.binding());
        let entries: Vec<_> = std::iter::once(uniform)
            .chain(storage)
            .enumerate()
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource })
            .collect();
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(d.kernel),
            layout: &pipeline.layout,
            entries: &entries,
        });
        let queries = self.profile.as_mut().map(|profile| profile.next(&self.gpu, d.kernel, d.work));
        if queries.is_some() {
            self.close_pass();
        }
        let timestamp_writes = queries.as_ref().map(|(query_set, first)| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(*first),
            end_of_pass_write_index: Some(first + 1),
        });
        let pending = self.open();
        let pass = pending.pass.get_or_insert_with(|| {
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            pending.encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[offset as u32]);
        let [x, y, z] = d.workgroups.map(|count| count as u32);
        pass.dispatch_workgroups(x, y, z);
        self.work += d.work;
        if self.uniform_bytes.len() == UNIFORM_STRIDE * UNIFORM_BLOCKS || self.work >= self.work_per_submission() {
            self.submit()?;
        }
        Ok(())
    }

    fn work_per_submission(&self) -> f64 {
        self.gpu.pace().map_or(FIRST_SUBMISSIONS, |pace| pace * SECONDS_PER_SUBMISSION)
    }

    /// Takes note of the pace, once everything that was submitted is done.
    fn measure(&mut self) {
        if let (work, Some(since)) = std::mem::take(&mut self.submitted) {
            self.gpu.paced(work, since.elapsed().as_secs_f64());
        }
    }

    /// Submits what was recorded, if anything was.
    fn submit(&mut self) -> Result<Option<wgpu::SubmissionIndex>> {
        self.close_pass();
        let mut submission = None;
        if let Some(mut pending) = self.pending.take() {
            if let Some(profile) = &mut self.profile {
                profile.resolve(&self.gpu, &mut pending.encoder);
            }
            // Ordered before the submission below and after every earlier one.
            self.gpu.queue.write_buffer(&self.uniforms, 0, &self.uniform_bytes);
            submission = Some(self.gpu.queue.submit([pending.encoder.finish()]));
            self.uniform_bytes.clear();
            let (work, since) = &mut self.submitted;
            *work += std::mem::take(&mut self.work);
            if !cfg!(target_arch = "wasm32") {
                since.get_or_insert_with(Instant::now);
            }
        }
        self.gpu.check(0, "a submission")?;
        Ok(submission)
    }

    /// Writes into a buffer that was just allocated. Once about twice [`UNDERWAY`] are on their way, the host waits.
    fn write(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        // A write goes ahead of what is recorded and not yet submitted, which may still use this pooled buffer.
        self.submit()?;
        if !bytes.is_empty() {
            self.gpu.queue.write_buffer(buffer.raw(), offset, bytes);
        }
        self.written += bytes.len() as u64;
        if self.written > UNDERWAY {
            self.written = 0;
            let submission = self.gpu.queue.submit([]);
            if let Some(earlier) = self.last_written.replace(submission) {
                self.wait(Some(earlier))?;
            }
        }
        Ok(())
    }

    /// Waits for a submission and all before it, or for all; in a browser for nothing.
    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let waited = self.gpu.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        waited.map(|_| ()).map_err(|e| self.gpu.refusal(e))
    }

    /// Has the first bytes of each buffer copied to the host, one after the other.
    fn begin_read(&mut self, parts: &[(wgpu::Buffer, u64)]) -> Result<Staged> {
        let size = parts.iter().map(|(_, size)| size).sum();
        let buffer = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.gpu.check(size, "a read-back")?;
        self.close_pass();
        let mut end = 0;
        for (part, size) in parts {
            self.encoder().copy_buffer_to_buffer(part, 0, &buffer, end, *size);
            end += size;
        }
        let submission = self.submit()?;
        let (sender, mapped) = futures::channel::oneshot::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if the reading future was dropped.
            let _ = sender.send(result);
        });
        Ok(Staged { buffer, submission, mapped })
    }

    /// Waits for a copy to be on the host.
    async fn end_read(&mut self, Staged { buffer, submission, mapped }: Staged) -> Result<Mapped> {
        self.wait(submission)?;
        let mapped = mapped.await.map_err(|e| self.gpu.refusal(e))?;
        self.gpu.check(buffer.size(), "a read-back")?;
        mapped.map_err(|e| self.gpu.refusal(e))?;
        Ok(Mapped { gpu: self.gpu.clone(), buffer })
    }

    /// The elements of `tensors`, once every flag is seen to be down.
    async fn read<T: Element>(&mut self, tensors: &[&Tensor<T>]) -> Result<Vec<Vec<T>>> {
        let flags = self.flags.iter().map(|(flag, _)| (flag.buffer().raw().clone(), 4));
        let wanted = tensors.iter().map(|tensor| (tensor.buffer().raw().clone(), tensor.len() as u64 * 4));
        let parts: Vec<_> = wanted.chain(flags).filter(|(_, size)| *size > 0).collect();
        let staged = self.begin_read(&parts)?;
        let mapped = self.end_read(staged).await?;
        self.measure();
        let flagged = std::mem::take(&mut self.flags);
        mapped.with_bytes(|bytes| {
            let (mut values, flags) = bytes.split_at(bytes.len() - 4 * flagged.len());
            let errors = flagged.into_iter().map(|(_, error)| error);
            if let Some((_, error)) = flags.as_chunks().0.iter().zip(errors).find(|(flag, _)| **flag != [0; 4]) {
                return Err(error);
            }
            let mut next = |tensor: &&Tensor<T>| {
                let (first, rest) = values.split_at(tensor.len() * 4);
                values = rest;
                bytemuck::pod_collect_to_vec(first)
            };
            Ok(tensors.iter().map(&mut next).collect())
        })?
    }
}

/// Elements of a tensor on their way to the host.
#[derive(Debug)]
pub struct Reading(Source);

#[derive(Debug)]
enum Source {
    Here(Vec<f32>),
    Gpu(Staged),
}

/// A copy on its way to the host.
#[derive(Debug)]
struct Staged {
    buffer: wgpu::Buffer,
    submission: Option<wgpu::SubmissionIndex>,
    mapped: futures::channel::oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
}

/// A copy that has arrived.
struct Mapped {
    gpu: Arc<Gpu>,
    buffer: wgpu::Buffer,
}

impl Mapped {
    fn with_bytes<R>(self, f: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let bytes = self.buffer.get_mapped_range(..).map_err(|e| self.gpu.refusal(e))?;
        Ok(f(&bytes))
    }
}
