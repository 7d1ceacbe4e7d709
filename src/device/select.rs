//! The adapters of this machine, and which of them a run uses.

use super::fast::MatrixUnits;
use super::{Clock, Device, Gpu, Precision};
use crate::error::{Phrase, Setting, phrase};
use crate::{Error, Result};

/// The device that a user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The first real GPU, or the CPU if there is none.
    Auto,
    /// The CPU.
    Cpu,
    /// The first real GPU. It is an error if there is none.
    Gpu,
    /// The adapter with this [`AdapterSummary::index`].
    Index(usize),
    /// The first adapter whose name contains this text, in upper or lower case. It may be a software adapter.
    Name(String),
}

impl std::str::FromStr for Choice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            other => other.parse().map_or_else(|_| Self::Name(other.to_string()), Self::Index),
        })
    }
}

/// An adapter, described for a user who has to choose one.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Its number, by which [`Choice::Index`] finds it.
    pub index: usize,
    /// Its name, by which [`Choice::Name`] finds it.
    pub name: String,
    /// Vulkan, Metal or WebGPU.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// Whether it is emulated on the CPU. [`Choice::Auto`] and [`Choice::Gpu`] never take such an adapter.
    pub software: bool,
    /// Which kernels large products would use there, and why, as a phrase. `fast, unchecked` where the fast kernels would have to
    /// pass their check first.
    pub tier: Phrase,
    /// Largest storage binding in bytes.
    pub largest_binding: u64,
    /// Largest buffer in bytes.
    pub largest_buffer: u64,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Invocations per workgroup.
    pub workgroup_invocations: u32,
}

/// The adapters that can run compute shaders, in the order in which wgpu lists them. OpenGL is not asked for any.
pub(crate) async fn compute_adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::BROWSER_WEBGPU;
    // With wgpu's default flags buffers end at 4 GiB. The environment may still turn validation on.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let computes =
        |a: &wgpu::Adapter| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS);
    adapters.into_iter().filter(computes).collect()
}

impl AdapterSummary {
    /// Describes `adapter`, which is number `index` of [`compute_adapters`].
    pub(crate) fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let tier = match MatrixUnits::of(adapter) {
            Ok(_) => "fast, unchecked".into(),
            Err(reason) => format!("portable, {reason}").into(),
        };
        Self {
            index,
            name: info.name,
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            tier,
            largest_binding: limits.max_storage_buffer_binding_size,
            largest_buffer: limits.max_buffer_size,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        }
    }
}

/// All adapters that [`Choice`] can name. None of them is opened.
pub async fn adapters() -> Vec<AdapterSummary> {
    summaries(&compute_adapters().await)
}

fn summaries(adapters: &[wgpu::Adapter]) -> Vec<AdapterSummary> {
    adapters.iter().enumerate().map(|(index, adapter)| AdapterSummary::new(index, adapter)).collect()
}

/// Opens the device that `choice` asks for, as [`Gpu::open`] does, and says in a phrase why it was chosen.
///
/// Errors: `Error::Input` if no device fits the choice, `Error::Gpu` if the adapter cannot be opened.
pub(crate) async fn open(choice: &Choice, precision: Precision, clock: Option<Clock>) -> Result<(Device, Phrase)> {
    if *choice == Choice::Cpu {
        return Ok((Device::Cpu, Setting::Device.set_to("cpu")));
    }
    let adapters = compute_adapters().await;
    let summaries = summaries(&adapters);
    let found = match choice {
        Choice::Auto | Choice::Gpu => summaries.iter().find(|s| !s.software),
        Choice::Index(index) => summaries.get(*index),
        Choice::Name(name) => summaries.iter().find(|s| s.name.to_lowercase().contains(&name.to_lowercase())),
        Choice::Cpu => None,
    };
    match found {
        Some(s) => {
            let reason = match choice {
                Choice::Auto => "the first real GPU".into(),
                _ => phrase!["named by ", Setting::Device],
            };
            Ok((Device::Gpu(Gpu::open(&adapters[s.index], precision, clock).await?), reason))
        }
        None if *choice == Choice::Auto => {
            let reason =
                if summaries.is_empty() { "no GPU adapter was found" } else { "only software adapters were found" };
            Ok((Device::Cpu, reason.into()))
        }
        None => Err(no_such_device(choice, &summaries)),
    }
}

fn no_such_device(choice: &Choice, summaries: &[AdapterSummary]) -> Error {
    let listed: Vec<_> = summaries.iter().map(|s| format!("{} = '{}'", s.index, s.name)).collect();
    let there = if listed.is_empty() { "no adapters at all".to_string() } else { listed.join(", ") };
    let asked = match choice {
        Choice::Index(index) => format!("number {index}"),
        Choice::Name(name) => format!("'{name}'"),
        _ => "a real GPU".to_string(),
    };
    Error::input(
        Setting::Device,
        format!("no adapter that is {asked} among {there}"),
        "auto, cpu, gpu, or a number or name that `aquatint devices` lists",
        "choose one of those, or install the GPU's Vulkan driver",
    )
}
