//! Aquatint quantizes language models to 4, 3 and 2 bits on any GPU, correcting each weight for the error that
//! arrives at it before rounding it (Quantization Error Propagation, arXiv 2504.09629).

pub mod device;
pub mod error;
pub mod ops;
pub mod tensor;

pub use error::{Error, Result};
