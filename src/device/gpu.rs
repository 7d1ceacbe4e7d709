//! An opened GPU: the wgpu device and queue, what they hold, and the errors that wgpu reports outside of a call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use super::buffers::{Buffer, Pool, lock, size_class};
use super::fast::{self, FastShape, FastTier, MatrixUnits, Precision};
use super::pipelines::{Kernel, Pipeline, compile};
use super::recorder::Pace;
use super::{Clock, shader};
use crate::error::{Phrase, phrase};
use crate::{Error, Result};

/// An opened GPU. All recorders of this GPU share it.
#[derive(Debug)]
pub struct Gpu {
    name: String,
    driver: String,
    software: bool,
    memory: Option<u64>,
    limits: wgpu::Limits,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pool: Arc<Pool>,
    /// Compiled kernels by their names.
    pipelines: Mutex<HashMap<&'static str, Arc<Pipeline>>>,
    /// How fast it has worked of late.
    pub(super) pace: Pace,
    /// The first error that wgpu reported and that no call has returned yet.
    fault: Arc<Mutex<Option<Fault>>>,
    /// The matrix units that the device was opened with, or why it was opened without.
    matrix_units: Result<MatrixUnits, Phrase>,
    /// The fast tier, or why it is not used. Unset until the check has run.
    fast: OnceLock<Result<FastTier, Phrase>>,
}

/// An error that wgpu reported through a callback. The next call that can fail returns it as an [`Error`].
#[derive(Debug, Clone)]
enum Fault {
    OutOfMemory,
    Lost(String),
    Refused(String),
}

impl Gpu {
    /// Opens `adapter` with all its limits, with timestamps where it has them, and with its matrix units if `precision` asks for
    /// them. The matrix units are not used before [`Gpu::set_fast_tier`].
    ///
    /// Errors: `Error::Gpu` if the driver refuses.
    pub(crate) async fn open(adapter: &wgpu::Adapter, precision: Precision, clock: Option<Clock>) -> Result<Arc<Self>> {
        let matrix_units = match precision {
            Precision::Fast => MatrixUnits::of(adapter).map_err(Phrase::from),
            Precision::Portable => Err("as asked for".into()),
        };
        let gpu = match Self::request(adapter, matrix_units.clone(), clock).await {
            // A driver may refuse features that its adapter lists.
            Err(error) if matrix_units.is_ok() => Self::request(adapter, Err(error.phrase()), clock).await,
            gpu => gpu,
        };
        Ok(Arc::new(gpu?))
    }

    async fn request(
        adapter: &wgpu::Adapter,
        matrix_units: Result<MatrixUnits, Phrase>,
        clock: Option<Clock>,
    ) -> Result<Self> {
        let wgpu::AdapterInfo { name, device_type, backend, driver, driver_info, .. } = adapter.get_info();
        let limits = adapter.limits();
        let optional = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        let (required_features, experimental_features) = match matrix_units {
            // SAFETY: cooperative matrices are the only experimental feature in use. Their sizes are ones that the adapter lists,
            // and their results are compared with the CPU's before anything relies on them.
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
            .map_err(|e| Error::Gpu { device: name.clone(), message: one_line(&e.to_string()) })?;
        Ok(Self {
            driver: format!("{name} | {backend} | {driver} {driver_info}"),
            name,
            software: device_type == wgpu::DeviceType::Cpu,
            memory: memory(adapter),
            limits,
            fault: collect_faults(&device),
            device,
            queue,
            pool: Arc::new(Pool::new()),
            pipelines: Mutex::default(),
            pace: Pace::new(clock),
            matrix_units,
            fast: OnceLock::new(),
        })
    }

    /// The name that the driver gives the adapter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The adapter, its backend and its driver with its version: together they decide how fast a kernel is.
    pub(crate) fn driver(&self) -> &str {
        &self.driver
    }

    /// Whether the adapter is emulated on the CPU.
    pub(crate) fn is_software(&self) -> bool {
        self.software
    }

    /// The memory of the GPU in bytes, if the driver tells.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// The limits of the opened device.
    pub(super) fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// The size in bytes of the largest array that a kernel can read or write.
    pub(super) fn largest_array(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size)
    }

    /// The shapes that could become the fast tier of this device. None where it was opened without matrix units.
    pub(crate) fn fast_shapes(&self) -> Vec<&'static FastShape> {
        self.matrix_units.iter().flat_map(|units| units.shapes()).collect()
    }

    /// Sets the fast tier of this device, or a phrase that says why it has none. It can be set once: kernels that are compiled
    /// later depend on it. The peak of memory then counts anew, so that a check that ran before is not part of it.
    pub(crate) fn set_fast_tier(&self, fast: Result<FastTier, Phrase>) {
        // A second value is not taken.
        let _ = self.fast.set(fast);
        self.pool.reset_peak();
    }

    /// The shape that large products use, if the device uses its fast tier.
    pub(crate) fn fast_shape(&self) -> Option<&'static FastShape> {
        self.fast.get()?.as_ref().ok().map(|fast| fast.shape)
    }

    /// Which kernels large products use, and why, as a phrase.
    pub fn tier(&self) -> Phrase {
        match (&self.matrix_units, self.fast.get()) {
            (Err(reason), _) | (_, Some(Err(reason))) => phrase!["portable, ", reason],
            (_, Some(Ok(FastTier { shape, error }))) => {
                format!("fast, f16 in squares of {}, error {error:.1e} in its check", shape.extent).into()
            }
            (Ok(_), None) => "portable".into(),
        }
    }

    /// Sets how many bytes all buffers may have together, and counts their peak anew.
    pub(super) fn set_limit(&self, bytes: u64) {
        self.pool.set_limit(bytes);
    }

    /// Sets above how many bytes free buffers are destroyed before another is made.
    pub(super) fn set_trim_above(&self, bytes: u64) {
        self.pool.set_trim_above(bytes);
    }

    /// The most bytes of buffers that were held at one time since the limit was last set.
    pub fn peak_bytes(&self) -> u64 {
        self.pool.peak()
    }

    /// Destroys the buffers that are not in use.
    pub(super) fn trim(&self) {
        self.pool.trim();
    }

    /// A storage buffer of at least `size` bytes with undefined contents. `what` names it in errors.
    ///
    /// Errors: `Error::OutOfMemory` if it is too large to bind, if the limit leaves no room, or if the driver has no memory.
    pub(super) fn allocate(&self, size: u64, what: &str) -> Result<Buffer> {
        let size = size.max(4).next_multiple_of(4);
        let out_of_memory = || Error::OutOfMemory { device: self.name.clone(), bytes: size, what: what.to_string() };
        if size > self.largest_array() {
            return Err(out_of_memory());
        }
        let class = size_class(size).min(self.limits.max_buffer_size);
        let buffer = match self.pool.take(class) {
            Some(buffer) => buffer,
            None => {
                if !self.pool.make_room(class) {
                    return Err(out_of_memory());
                }
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                let descriptor = wgpu::BufferDescriptor { label: None, size: class, usage, mapped_at_creation: false };
                let buffer = self.device.create_buffer(&descriptor);
                self.check_faults(class, what)?;
                self.pool.count(class);
                buffer
            }
        };
        Ok(Buffer::new(buffer, size, self.pool.clone()))
    }

    /// The pipeline of `kernel`, a name in `shaders/permutations`. It is compiled when it is first asked for.
    ///
    /// Errors: `Error::Gpu` if the driver refuses the shader.
    pub(super) fn pipeline(&self, kernel: &'static str, inputs: usize, outputs: usize) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = lock(&self.pipelines).get(kernel) {
            return Ok(pipeline.clone());
        }
        let description = Kernel {
            name: kernel,
            source: shader::permutation(kernel).source(self.fast_shape().is_some()),
            inputs,
            outputs,
            threads: self.matrix_units.as_ref().ok().and_then(|units| units.workgroup_size(kernel)),
        };
        let pipeline = Arc::new(compile(&self.device, &description));
        self.check_faults(0, kernel)?;
        lock(&self.pipelines).insert(kernel, pipeline.clone());
        Ok(pipeline)
    }

    /// Returns the error that wgpu reported since the last call, if any. `bytes` and `what` say what was being made.
    pub(super) fn check_faults(&self, bytes: u64, what: &str) -> Result<()> {
        let device = self.name.clone();
        match lock(&self.fault).take() {
            None => Ok(()),
            Some(Fault::OutOfMemory) => Err(Error::OutOfMemory { device, bytes, what: what.to_string() }),
            Some(Fault::Lost(reason)) => Err(Error::DeviceLost { device, reason }),
            Some(Fault::Refused(message)) => Err(Error::Gpu { device, message }),
        }
    }

    /// An `Error::Gpu` with the words of wgpu.
    pub(super) fn error(&self, error: impl std::fmt::Display) -> Error {
        Error::Gpu { device: self.name.clone(), message: error.to_string() }
    }
}

/// Has wgpu write the errors of `device` into the value that is returned. The first error stays, but a lost device replaces it.
fn collect_faults(device: &wgpu::Device) -> Arc<Mutex<Option<Fault>>> {
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
    fault
}

/// The memory of a GPU in bytes: its largest device-local heap, as Vulkan reports it.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter is asked for a property. It is neither changed nor kept.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device belongs to this instance, and the adapter keeps both alive.
    let properties = unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

/// Unknown: Metal and WebGPU are not asked.
#[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
