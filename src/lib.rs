//! Aquatint quantizes language models to 4, 3 and 2 bits on any GPU, correcting each weight for the error that
//! arrives at it before rounding it (Quantization Error Propagation, arXiv 2504.09629).

pub mod bundled;
pub mod calibration;
pub mod checkpoint;
pub mod device;
pub mod error;
pub mod eval;
pub mod model;
pub mod ops;
pub mod pipeline;
pub mod quant;
pub mod report;
pub mod tensor;

pub use calibration::{Calibration, Sampling, TextFile};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use model::{ModelConfig, Tokenizer};
