//! The recorder: ops give it commands, and nothing waits until a value is read back.
//!
//! On the CPU an op computes at once. On a GPU its dispatches go into one compute pass of one command encoder. Their uniform
//! blocks go into one buffer, bound with dynamic offsets. The commands are submitted when a value is read, when the uniform
//! buffer is full, or when they are enough work for the GPU (see `pace`).
//!
//! This file has the arrays and the dispatch. `transfer` has uploads and copies, `read` has what comes back to the host,
//! `profile` times kernels.

mod pace;
mod profile;
mod read;
mod transfer;

use std::sync::Arc;

pub(super) use pace::Pace;
pub use profile::KernelTime;
pub use read::Reading;

use self::pace::Unfinished;
use self::profile::Profile;
use self::transfer::Uploads;
use super::buffers::Buffer;
use super::{Device, FastShape, Gpu, Memory};
use crate::device::{Element, Tensor, limit_free, recycled};
use crate::{Error, Result};

/// Bytes from one uniform block to the next: the largest alignment that WebGPU may ask for.
const UNIFORM_STRIDE: usize = 256;
/// Uniform blocks in the buffer, so dispatches per submission at most.
const UNIFORM_BLOCKS: usize = 512;

/// Products go to the fast tier if all three extents are at least this. Smaller ones gain less than splitting the operands costs.
const FAST_FROM: usize = 128;

/// Takes the commands of the ops for one device. Each task makes its own recorder. Tensors may move between recorders of the
/// same device.
#[derive(Debug)]
pub struct Recorder {
    device: Device,
    memory: Memory,
    fast_from: usize,
    /// `None` on the CPU.
    recording: Option<Recording>,
}

/// The state of a recorder on a GPU.
#[derive(Debug)]
struct Recording {
    gpu: Arc<Gpu>,
    /// What the next submission will do, if anything.
    commands: Option<Commands>,
    /// The uniform blocks of those commands, and the buffer that they are copied to at the submission.
    uniform_bytes: Vec<u8>,
    uniforms: wgpu::Buffer,
    /// Floating-point operations of those commands.
    work: f64,
    unfinished: Unfinished,
    uploads: Uploads,
    /// The flags of [`Recorder::fail_if`] that were not read yet, each with its error.
    flags: Vec<(Tensor<u32>, Error)>,
    /// Set while kernels are timed.
    profile: Option<Profile>,
}

/// Commands that are recorded and not yet submitted.
#[derive(Debug)]
struct Commands {
    /// Copies cannot stand in a compute pass, so they close it, and the next dispatch opens another.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
}

/// One dispatch: a kernel, what is bound to it, and its number of workgroups.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    /// Name in `shaders/permutations`.
    pub kernel: &'static str,
    /// The uniform block, binding 0: at most 256 bytes.
    pub params: &'a [u8],
    /// Bindings from 1 on: read-only storage.
    pub inputs: &'a [&'a Buffer],
    /// The bindings after the inputs: read-write storage. No buffer may be an input and an output, or an output twice.
    pub outputs: &'a [&'a Buffer],
    /// Number of workgroups along each axis.
    pub workgroups: [usize; 3],
    /// Estimated floating-point operations.
    pub work: f64,
}

impl Recorder {
    /// A recorder for `device`, without commands.
    pub fn new(device: &Device) -> Self {
        let recording = match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(Recording::new(gpu.clone())),
        };
        Self { device: device.clone(), memory: Memory::default(), fast_from: FAST_FROM, recording }
    }

    /// The device that this records for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether ops must record a dispatch instead of computing at once.
    pub(crate) fn is_gpu(&self) -> bool {
        self.recording.is_some()
    }

    /// How much memory the run may use.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Sets how much memory the run may use. The limit on a GPU's memory holds for all recorders of that GPU.
    pub fn set_memory(&mut self, memory: Memory) {
        if let Device::Gpu(gpu) = &self.device {
            gpu.set_limit(memory.device.unwrap_or(u64::MAX));
        }
        self.memory = memory;
    }

    /// Limits the memory of arrays that are not in use. A GPU frees them before it holds more than `bytes` in all. The CPU frees
    /// what exceeds `spare` bytes.
    pub(crate) fn limit_unused(&mut self, bytes: u64, spare: u64) {
        match &self.device {
            Device::Cpu => limit_free(spare),
            Device::Gpu(gpu) => gpu.set_trim_above(bytes),
        }
    }

    /// Frees the GPU's arrays that are not in use. Call it where the sizes of arrays change.
    pub fn trim(&mut self) {
        if let Some(r) = &self.recording {
            r.gpu.trim();
        }
    }

    /// Sends a product to the fast tier, where the device has one, if each of its three extents is at least `extent`: 0 sends all
    /// products there, `usize::MAX` none.
    pub fn set_fast_from(&mut self, extent: usize) {
        self.fast_from = extent;
    }

    /// The fast shape to use for a product of these three extents. `None` if it should use the portable kernel.
    pub(crate) fn fast_shape(&self, extents: [usize; 3]) -> Option<&'static FastShape> {
        let Device::Gpu(gpu) = &self.device else { return None };
        let least = self.fast_from.max(1);
        gpu.fast_shape().filter(|_| extents.iter().all(|&extent| extent >= least))
    }

    /// An array with undefined contents. Errors: `Error::OutOfMemory`.
    pub fn empty<T: Element>(&mut self, shape: &[usize]) -> Result<Tensor<T>> {
        let len: usize = shape.iter().product();
        match &self.recording {
            None => Ok(Tensor::on_host(shape, recycled(len))),
            Some(r) => Ok(Tensor::on_gpu(shape, r.gpu.allocate(len as u64 * 4, &format!("an array of {shape:?}"))?)),
        }
    }

    /// An array of zeros. Errors: `Error::OutOfMemory`.
    pub fn zeros<T: Element>(&mut self, shape: &[usize]) -> Result<Tensor<T>> {
        let mut tensor: Tensor<T> = self.empty(shape)?;
        match &mut self.recording {
            None => tensor.host_mut().fill(T::default()),
            Some(r) => r.copy_encoder().clear_buffer(tensor.buffer().raw(), 0, None),
        }
        Ok(tensor)
    }

    /// Records one dispatch, and submits if there is enough work now. Panics on the CPU: ops must compute there.
    ///
    /// Errors: `Error::Shape` if there are too many workgroups, `Error::Gpu` if the driver refuses the kernel, and whatever the
    /// GPU reported since the last call.
    pub(crate) fn dispatch(&mut self, dispatch: Dispatch<'_>) -> Result<()> {
        let recording = self.recording.as_mut().expect("dispatch is only called on a GPU");
        recording.dispatch(dispatch)
    }

    /// Submits the recorded commands without waiting for them. Errors: whatever the GPU reported since the last call.
    pub fn submit(&mut self) -> Result<()> {
        self.recording.as_mut().map_or(Ok(()), |r| r.submit().map(|_| ()))
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
            commands: None,
            uniform_bytes: Vec::new(),
            uniforms,
            work: 0.0,
            unfinished: Unfinished::default(),
            uploads: Uploads::default(),
            flags: Vec::new(),
            profile: None,
        }
    }

    /// The commands to append to.
    fn commands(&mut self) -> &mut Commands {
        let gpu = &self.gpu;
        self.commands.get_or_insert_with(|| Commands {
            pass: None,
            encoder: gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()),
        })
    }

    /// The encoder for copies and clears, after all dispatches that were recorded.
    fn copy_encoder(&mut self) -> &mut wgpu::CommandEncoder {
        let commands = self.commands();
        commands.pass = None;
        &mut commands.encoder
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
        let group = self.bind_group(&pipeline.layout, &d);
        let offset = self.uniform_bytes.len();
        self.uniform_bytes.extend_from_slice(d.params);
        self.uniform_bytes.resize(offset + UNIFORM_STRIDE, 0);
        let pass = self.pass(&d);
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[offset as u32]);
        let [x, y, z] = d.workgroups.map(|count| count as u32);
        pass.dispatch_workgroups(x, y, z);
        self.work += d.work;
        let full = self.uniform_bytes.len() == UNIFORM_STRIDE * UNIFORM_BLOCKS;
        if full || self.work >= self.gpu.pace.work_per_submission() {
            self.submit()?;
        }
        Ok(())
    }

    /// The bind group of a dispatch. The offset of its uniform block is given when the group is set.
    fn bind_group(&self, layout: &wgpu::BindGroupLayout, d: &Dispatch<'_>) -> wgpu::BindGroup {
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
        let descriptor = wgpu::BindGroupDescriptor { label: Some(d.kernel), layout, entries: &entries };
        self.gpu.device.create_bind_group(&descriptor)
    }

    /// The compute pass for a dispatch: the open one, or a new one with timestamps while kernels are timed.
    fn pass(&mut self, d: &Dispatch<'_>) -> &mut wgpu::ComputePass<'static> {
        let queries = self.profile.as_mut().map(|profile| profile.next(&self.gpu, d.kernel, d.work));
        let commands = self.commands();
        if queries.is_some() {
            commands.pass = None;
        }
        let timestamp_writes = queries.as_ref().map(|(query_set, first)| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(*first),
            end_of_pass_write_index: Some(first + 1),
        });
        commands.pass.get_or_insert_with(|| {
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            commands.encoder.begin_compute_pass(&descriptor).forget_lifetime()
        })
    }

    /// Submits the recorded commands. Returns the submission, or `None` if there were no commands.
    fn submit(&mut self) -> Result<Option<wgpu::SubmissionIndex>> {
        let mut submission = None;
        if let Some(Commands { pass, mut encoder }) = self.commands.take() {
            // Dropping the pass ends it.
            drop(pass);
            if let Some(profile) = &mut self.profile {
                profile.resolve(&self.gpu, &mut encoder);
            }
            // The queue runs this write after all earlier submissions and before the one below.
            self.gpu.queue.write_buffer(&self.uniforms, 0, &self.uniform_bytes);
            submission = Some(self.gpu.queue.submit([encoder.finish()]));
            self.uniform_bytes.clear();
            self.unfinished.add(std::mem::take(&mut self.work), &self.gpu.pace);
        }
        self.gpu.check_faults(0, "a submission")?;
        Ok(submission)
    }

    /// Waits for a submission and all before it, or for all submissions. In a browser it returns at once: there only a future can
    /// wait.
    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let waited = self.gpu.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        waited.map(|_| ()).map_err(|e| self.gpu.error(e))
    }
}
