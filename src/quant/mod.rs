//! The methods: how one linear layer is corrected and rounded. Written in ops, knowing no model and no wgpu.

pub mod alpha;
pub mod correction;
mod descent;
pub mod gptq;
pub mod options;
pub mod rounding;
pub mod statistics;

pub use options::{ActivationOrder, Alpha, AlphaPolicy, GroupSize, Method, QuantizeOptions};
pub use rounding::{Rounded, Rounder};
pub use statistics::{Damping, Statistics};
