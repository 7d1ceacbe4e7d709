//! The methods: how one linear layer is corrected and rounded. Written in ops, knowing no model and no wgpu.

pub mod alpha;
pub mod awq;
pub mod correction;
mod descent;
pub mod gptq;
pub mod options;
pub mod quip;
pub mod rotation;
pub mod rounding;
pub mod statistics;

pub use awq::{Activations, Scaling};
pub use options::{ActivationOrder, Alpha, AlphaPolicy, GroupSize, Method, QuantizeOptions, RotationKind};
pub use rounding::{Codes, Curvature, Layer, Rounded, Rounder};
pub use statistics::{Damping, Statistics};
