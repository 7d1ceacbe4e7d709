//! One wgpu device: its pipelines, its buffer pool, and the errors that arrive outside a call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::fast::{self, Measured, Offer, Precision, Shape};
use super::shader;
use crate::ops::cooperative;
use crate::{Error, Result};

/// An opened GPU. Shared by the recorders that feed it.
#[derive(Debug)]
pub struct Gpu {
    name: String,
    limits: wgpu::Limits,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pipelines: Mutex<HashMap<&'static str, Arc<Pipeline>>>,
    pool: Arc<Pool>,
    /// What the driver says it has, in bytes.
    memory: Option<u64>,
    /// Bytes that buffers may take in all, and bytes above which free ones are given back first.
    limit: AtomicU64,
    tidy_above: AtomicU64,
    /// Bytes that they have taken at most.
    peak: AtomicU64,
    /// Operations per second of late, as the bits of an f64; 0 while unknown.
    pace: AtomicU64,
    fault: Arc<Mutex<Option<Fault>>>,
    software: bool,
    /// What the fast tier needs, or why it was not asked for.
    offer: std::result::Result<Offer, String>,
    /// What became of it, once it was checked.
    fast: OnceLock<std::result::Result<Fast, String>>,
}

/// Operations that tell the pace of a GPU.
const LEAST_MEASURED: f64 = 1e9;

/// The fast tier of a device.
#[derive(Debug, Clone, Copy)]
struct Fast {
    shape: &'static Shape,
    /// The largest error of its check.
    error: f64,
}

/// A compiled kernel and its single bind group layout: binding 0 is the uniform, then inputs, then outputs.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// What a wgpu callback reported; becomes an [`Error`] at the next call that can return one.
#[derive(Debug, Clone)]
enum Fault {
    OutOfMemory,
    Lost(String),
    Refused(String),
}

/// Free buffers by size class. A buffer comes back when its last owner drops it; commands recorded later run later,
/// so handing it out again is safe.
#[derive(Debug, Default)]
struct Pool {
    free: Mutex<HashMap<u64, Vec<wgpu::Buffer>>>,
    /// Bytes of all buffers, free ones included.
    held: AtomicU64,
}

/// A pooled storage buffer. `size` is what was asked for; the buffer itself may be larger.
#[derive(Debug)]
pub struct Buffer {
    buffer: Option<wgpu::Buffer>,
    size: u64,
    pool: Arc<Pool>,
}

impl Buffer {
    pub(super) fn raw(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("the buffer is only taken by Drop")
    }

    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        let size = wgpu::BufferSize::new(self.size);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: self.raw(), offset: 0, size })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            lock(&self.pool.free).entry(buffer.size()).or_default().push(buffer);
        }
    }
}

/// A poisoned lock only means that another thread panicked; the data are still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Gpu {
    /// Opens `adapter` with the limits that it has. Optional features are timestamps and, if `precision` asks for it, those of
    /// the fast tier, which is then checked and set up.
    pub(super) async fn open(adapter: &wgpu::Adapter, precision: Precision) -> Result<Arc<Self>> {
        let offer = match precision {
            Precision::Fast => Offer::of(adapter),
            Precision::Portable => Err("as asked for".to_string()),
        };
        let gpu = match Self::request(adapter, offer.clone()).await {
            Err(error) if offer.is_ok() => Self::request(adapter, Err(one_line(&error.to_string()))).await,
            gpu => gpu,
        };
        let gpu = Arc::new(gpu?);
        gpu.settle(&adapter.get_info()).await;
        Ok(gpu)
    }

    /// Opens `adapter` with what the fast tier needs if there is an offer.
    async fn request(adapter: &wgpu::Adapter, offer: std::result::Result<Offer, String>) -> Result<Self> {
        let wgpu::AdapterInfo { name, device_type, .. } = adapter.get_info();
        let limits = adapter.limits();
        let optional = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        let (required_features, experimental_features) = match offer {
            // SAFETY: of what is experimental only cooperative matrices are used, in sizes that the adapter lists, and
            // results are compared with the CPU's before they are relied on.
            Ok(_) => (optional | fast::FEATURES, unsafe { wgpu::ExperimentalFeatures::enabled() }),
            Err(_) => (optional, wgpu::ExperimentalFeatures::disabled()),
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("aquatint"),
            required_features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::Gpu { device: name.clone(), message: e.to_string() })?;
        let fault = Arc::new(Mutex::new(None));
        let on_error = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let fault = match error {
                wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory,
                other => Fault::Refused(one_line(&other.to_string())),
            };
            lock(&on_error).get_or_insert(fault);
        }));
        let on_loss = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                *lock(&on_loss) = Some(Fault::Lost(one_line(&message)));
            }
        });
        Ok(Self {
            name,
            limits,
            device,
            queue,
            pipelines: Mutex::default(),
            pool: Arc::default(),
            memory: memory(adapter),
            limit: AtomicU64::new(u64::MAX),
            tidy_above: AtomicU64::new(u64::MAX),
            peak: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            fault,
            software: device_type == wgpu::DeviceType::Cpu,
            offer,
            fast: OnceLock::new(),
        })
    }

    /// Decides on the fast tier: products in its shapes are compared with the CPU's, and the quickest shape is taken.
    async fn settle(self: &Arc<Self>, adapter: &wgpu::AdapterInfo) {
        let fast = match &self.offer {
            Err(reason) => Err(reason.clone()),
            Ok(offer) => {
                let (shapes, measured) = (offer.shapes().collect(), Measured::new(adapter));
                let known = measured.read();
                let chosen = cooperative::choose(self, shapes, known).await;
                if let Ok((shape, _)) = chosen
                    && known != Some(shape)
                {
                    measured.write(shape);
                }
                chosen.map(|(shape, error)| Fast { shape, error })
            }
        };
        // It is decided once, here.
        let _ = self.fast.set(fast);
        self.forget_peak();
    }

    /// The shape of products of the fast tier, where it is used.
    pub(crate) fn fast(&self) -> Option<&'static Shape> {
        self.fast.get()?.as_ref().ok().map(|fast| fast.shape)
    }

    /// Which kernels large products use, and why, as a phrase.
    pub fn tier(&self) -> String {
        match self.fast.get() {
            Some(Ok(Fast { shape, error })) => {
                format!("fast, f16 in squares of {}, error {error:.1e} in its check", shape.extent)
            }
            Some(Err(reason)) => format!("portable, {reason}"),
            None => "portable".to_string(),
        }
    }

    /// Whether it is emulated on the CPU.
    pub(crate) fn is_software(&self) -> bool {
        self.software
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits of the opened device.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// The memory beside the processor in bytes, where the driver tells.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// The most bytes that buffers have taken at a time since the limit was set.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// Operations per second of late, if anything is known.
    pub(super) fn pace(&self) -> Option<f64> {
        Some(f64::from_bits(self.pace.load(Relaxed))).filter(|&pace| pace > 0.0)
    }

    /// Takes note that `work` operations took `seconds`. A GPU that had to wait was faster than that, so a lower pace counts less.
    pub(super) fn paced(&self, work: f64, seconds: f64) {
        if work < LEAST_MEASURED || seconds <= 0.0 {
            return;
        }
        let now = work / seconds;
        let pace = self.pace().filter(|&pace| pace > now).map_or(now, |pace| 0.9 * pace + 0.1 * now);
        self.pace.store(pace.to_bits(), Relaxed);
    }

    /// Sets how many bytes buffers may take in all from now on, and forgets what they took before.
    pub(super) fn limit(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
        self.forget_peak();
    }

    /// Gives free buffers back; the peak is what is held now.
    fn forget_peak(&self) {
        self.trim();
        self.peak.store(self.pool.held.load(Relaxed), Relaxed);
    }

    /// Sets above how many bytes no buffer is made before free ones are given back.
    pub(super) fn tidy_above(&self, bytes: u64) {
        self.tidy_above.store(bytes, Relaxed);
    }

    /// Turns what a callback reported into an error, once.
    pub(super) fn check(&self, bytes: u64, what: &str) -> Result<()> {
        let device = self.name.clone();
        match lock(&self.fault).take() {
            None => Ok(()),
            Some(Fault::OutOfMemory) => Err(Error::OutOfMemory { device, bytes, what: what.to_string() }),
            Some(Fault::Lost(reason)) => Err(Error::DeviceLost { device, reason }),
            Some(Fault::Refused(message)) => Err(Error::Gpu { device, message }),
        }
    }

    /// What wgpu says when it refuses something.
    pub(super) fn refusal(&self, error: impl std::fmt::Display) -> Error {
        Error::Gpu { device: self.name.clone(), message: error.to_string() }
    }

    /// A storage buffer of at least `size` bytes, its contents undefined.
    pub(super) fn allocate(&self, size: u64, what: &str) -> Result<Buffer> {
        let size = size.max(4).next_multiple_of(4);
        if size > self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) {
            return Err(Error::OutOfMemory { device: self.name.clone(), bytes: size, what: what.to_string() });
        }
        let class = size_class(size).min(self.limits.max_buffer_size);
        let reused = lock(&self.pool.free).get_mut(&class).and_then(Vec::pop);
        let buffer = match reused {
            Some(buffer) => buffer,
            None => {
                let tidy_above = self.tidy_above.load(Relaxed).min(self.limit.load(Relaxed));
                if self.pool.held.load(Relaxed) + class > tidy_above {
                    self.trim();
                }
                if self.pool.held.load(Relaxed) + class > self.limit.load(Relaxed) {
                    return Err(Error::OutOfMemory { device: self.name.clone(), bytes: size, what: what.to_string() });
                }
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                let descriptor = wgpu::BufferDescriptor { label: None, size: class, usage, mapped_at_creation: false };
                let buffer = self.device.create_buffer(&descriptor);
                self.check(class, what)?;
                let held = self.pool.held.fetch_add(class, Relaxed) + class;
                self.peak.fetch_max(held, Relaxed);
                buffer
            }
        };
        Ok(Buffer { buffer: Some(buffer), size, pool: self.pool.clone() })
    }

    /// Gives pooled buffers back to the driver.
    pub(super) fn trim(&self) {
        let free = std::mem::take(&mut *lock(&self.pool.free));
        let bytes: u64 = free.values().flatten().map(wgpu::Buffer::size).sum();
        self.pool.held.fetch_sub(bytes, Relaxed);
    }

    /// The pipeline of a permutation, compiled at first use.
    pub(super) fn pipeline(&self, kernel: &'static str, inputs: usize, outputs: usize) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = lock(&self.pipelines).get(kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.compile(kernel, inputs, outputs));
        self.check(0, kernel)?;
        lock(&self.pipelines).insert(kernel, pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&self, kernel: &'static str, inputs: usize, outputs: usize) -> Pipeline {
        let device = &self.device;
        let source = wgpu::ShaderSource::Wgsl(shader::permutation(kernel).source(self.fast().is_some()).into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel), source };
        let module = shader_module(device, descriptor);
        let entry = |binding: usize, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: binding == 0, min_binding_size: None },
            count: None,
        };
        let entries: Vec<_> = std::iter::once(entry(0, wgpu::BufferBindingType::Uniform))
            .chain((1..=inputs).map(|b| entry(b, wgpu::BufferBindingType::Storage { read_only: true })))
            .chain(
                (inputs + 1..=inputs + outputs)
                    .map(|b| entry(b, wgpu::BufferBindingType::Storage { read_only: false })),
            )
            .collect();
        let layout = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let threads = self.offer.as_ref().ok().and_then(|offer| offer.threads(kernel));
        let constants: Vec<_> = threads.map(|threads| ("threads", f64::from(threads))).into_iter().collect();
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }
}

/// The largest heap beside the processor, which Vulkan tells.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter is asked for a property and neither changed nor kept.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device belongs to this instance, and the adapter keeps both alive.
    let properties = unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

/// Neither Metal nor a browser is asked.
#[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Debug builds keep every check of the shader compiler; release builds keep all but the bound on loop counts, which
/// stops drivers from unrolling.
fn shader_module(device: &wgpu::Device, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
    if cfg!(debug_assertions) {
        return device.create_shader_module(descriptor);
    }
    let mut checks = wgpu::ShaderRuntimeChecks::checked();
    checks.force_loop_bounding = false;
    // SAFETY: every loop of this crate's shaders runs over an extent given in the uniform, so all of them end.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

/// Sizes are rounded up to eighths of a power of two, so that buffers of nearly equal size share a class.
fn size_class(size: u64) -> u64 {
    let step = (size.next_power_of_two() / 16).max(256);
    size.next_multiple_of(step)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
