//! Everything that knows wgpu: which adapters there are, which one is taken and why, and the recorder that feeds it.

mod fast;
mod gpu;
mod memory;
mod profile;
mod recorder;
mod select;
pub mod shader;

use std::sync::Arc;

pub use fast::Precision;
pub(crate) use fast::{BLOCK, Shape};
pub use gpu::{Buffer, Gpu};
pub use memory::{Memory, Place};
pub use profile::KernelTime;
pub(crate) use recorder::Dispatch;
pub use recorder::{Reading, Recorder};
pub use select::{AdapterSummary, Choice, adapters, select};

/// Where a run computes: the CPU twins of the kernels, or a GPU.
#[derive(Debug, Clone)]
pub enum Device {
    /// The CPU twins, on all cores.
    Cpu,
    /// A GPU through wgpu.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// What to call this device in a report.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_string(),
            Self::Gpu(gpu) => gpu.name().to_string(),
        }
    }

    /// The memory of a GPU in bytes, where its driver tells.
    pub fn memory(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => gpu.memory(),
        }
    }

    /// The most bytes of arrays that a GPU has held since it was opened; `None` for the CPU.
    pub fn peak_bytes(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu.peak_bytes()),
        }
    }

    /// Which kernels its large products use: fast only where they were found right.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Gpu(gpu) if gpu.fast().is_some() => Precision::Fast,
            _ => Precision::Portable,
        }
    }

    /// The largest array, in bytes, that one kernel can be given.
    pub fn largest_array(&self) -> u64 {
        match self {
            Self::Cpu => u64::MAX,
            Self::Gpu(gpu) => gpu.limits().max_storage_buffer_binding_size.min(gpu.limits().max_buffer_size),
        }
    }
}
