//! Which adapter a run takes: what `--device` says, or the first real GPU, or the CPU.

use super::fast::Offer;
use super::{Device, Gpu, Precision};
use crate::error::{Phrase, Setting, phrase};
use crate::{Error, Result};

/// What `--device` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A real GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A real GPU, or an error.
    Gpu,
    /// The adapter of this number in the list of `aquatint devices`.
    Index(usize),
    /// The first adapter whose name contains this text, whatever its case. Software adapters count here.
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

/// One adapter, as `aquatint devices` shows it.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Number for `--device`.
    pub index: usize,
    /// Name for `--device`.
    pub name: String,
    /// Vulkan, Metal or WebGPU.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// Whether it is a software adapter, which `auto` never takes.
    pub software: bool,
    /// Which kernels large products would use there, and why, as a phrase.
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

/// The adapters that can run compute shaders, in the order in which wgpu lists them. GL is never asked.
async fn compute_adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::BROWSER_WEBGPU;
    // The default flags cap buffers at 4 GiB; the environment may still ask for validation.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let computes =
        |a: &wgpu::Adapter| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS);
    adapters.into_iter().filter(computes).collect()
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let limits = adapter.limits();
    AdapterSummary {
        index,
        name: info.name,
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        software: info.device_type == wgpu::DeviceType::Cpu,
        tier: match Offer::of(adapter) {
            Ok(_) => "fast, unchecked".into(),
            Err(reason) => format!("portable, {reason}").into(),
        },
        largest_binding: limits.max_storage_buffer_binding_size,
        largest_buffer: limits.max_buffer_size,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        workgroup_invocations: limits.max_compute_invocations_per_workgroup,
    }
}

/// All adapters that could be named. What offers the fast tier is opened to see whether it passes its check.
pub async fn adapters() -> Vec<AdapterSummary> {
    let mut summaries = Vec::new();
    for (index, adapter) in compute_adapters().await.iter().enumerate() {
        let mut summary = summary(index, adapter);
        if Offer::of(adapter).is_ok() {
            summary.tier = match Gpu::open(adapter, Precision::Fast).await {
                Ok(gpu) => gpu.tier().into(),
                Err(error) => error.phrase(),
            };
        }
        summaries.push(summary);
    }
    summaries
}

/// Opens what `choice` asks for, with the kernels that `precision` asks for, and says in a phrase why it was taken.
///
/// Errors: `Error::Input` naming `Setting::Device` if nothing fits; `Error::Gpu` if the adapter cannot be opened.
pub async fn select(choice: &Choice, precision: Precision) -> Result<(Device, Phrase)> {
    if *choice == Choice::Cpu {
        return Ok((Device::Cpu, Setting::Device.set_to("cpu")));
    }
    let adapters = compute_adapters().await;
    let summaries: Vec<_> = adapters.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect();
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
            Ok((Device::Gpu(Gpu::open(&adapters[s.index], precision).await?), reason))
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
