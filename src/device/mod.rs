//! Devices: where kernels run, and everything in this crate that calls wgpu.
//!
//! `select` lists the adapters and opens one. `gpu` is an opened GPU, with its `buffers` and `pipelines`. `recorder` takes the
//! commands of the ops in `crate::ops` and submits them. `fast` says which matrix units an adapter has, `shader` holds the
//! WGSL sources, and `memory` holds the limits of a run, and `tensor` is an array
//! in host memory or on a GPU. This folder imports no op: [`crate::ops::tier`] opens a device for the
//! rest of the program, because opening one includes a test of some kernels.

mod buffers;
mod fast;
mod gpu;
mod memory;
mod pipelines;
mod recorder;
mod select;
pub mod shader;
mod tensor;

use std::sync::Arc;

pub use buffers::Buffer;
pub use fast::Precision;
pub(crate) use fast::{FastShape, FastTier, MatrixUnits};
pub use gpu::Gpu;
pub use memory::{Memory, Place};
pub(crate) use recorder::Dispatch;
pub use recorder::{KernelTime, Reading, Recorder};
pub use select::{AdapterSummary, Choice, adapters};
pub(crate) use select::{compute_adapters, open};
pub use tensor::{Element, Tensor};
pub(crate) use tensor::{MOST_FREE, limit_free, recycled};

/// Returns the seconds since some fixed moment. The library reads no clock of its own: whoever opens a device may give it one.
pub type Clock = fn() -> f64;

/// Where a run computes: on the CPU or on a GPU.
#[derive(Debug, Clone)]
pub enum Device {
    /// The CPU, with all its cores. It runs the CPU twin of each kernel.
    Cpu,
    /// A GPU, through wgpu.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// The name of this device in a report: `cpu`, or what the driver calls the GPU.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_string(),
            Self::Gpu(gpu) => gpu.name().to_string(),
        }
    }

    /// The memory of a GPU in bytes. `None` for the CPU, and for a GPU whose driver does not say.
    pub fn memory(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => gpu.memory(),
        }
    }

    /// The most bytes of buffers that a GPU has held at one time since its limit was last set. `None` for the CPU.
    pub fn peak_bytes(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu.peak_bytes()),
        }
    }

    /// Which kernels large products use on this device. `Fast` means that the fast kernels have passed their check here.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Gpu(gpu) if gpu.fast_shape().is_some() => Precision::Fast,
            _ => Precision::Portable,
        }
    }

    /// The size in bytes of the largest array that a kernel can read or write.
    pub fn largest_array(&self) -> u64 {
        match self {
            Self::Cpu => u64::MAX,
            Self::Gpu(gpu) => gpu.largest_array(),
        }
    }
}
