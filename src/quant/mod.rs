//! How a group of linear layers is quantized: corrected for the error that arrives at it, rounded, refined.
//!
//! [`solve`] is the way in. [`methods`] has the base quantizers behind one trait, and the other files have what these share. The
//! folder stands on `ops` and `device` and below `pipeline`. It knows no model, no checkpoint and no GPU interface.

pub mod alpha;
mod column_loop;
pub mod correction;
mod curvature;
mod descent;
pub mod methods;
pub mod options;
pub mod rotation;
mod rounded;
pub mod solve;
pub mod statistics;

pub use curvature::{Curvature, HessianDiagonal};
pub use options::{ActivationOrder, Alpha, AlphaPolicy, GroupSize, Method, QuantizeOptions, RotationKind};
pub use rounded::{Codes, RoundedWeight};
pub use statistics::{Quantities, Statistics};
