//! Aquatint.
pub mod bundled;
pub mod calibration;
pub mod checkpoint;
pub mod error;
pub mod model;

pub use calibration::{Calibration, Sampling, TextFile};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use model::{ModelConfig, Tokenizer};
