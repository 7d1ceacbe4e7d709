//! Aquatint quantizes language models to 4, 3 and 2 bits on any GPU, correcting each weight for the error that
//! arrives at it before rounding it (Quantization Error Propagation, arXiv 2504.09629).
//!
//! A checkpoint and windows of tokens go in, quantized layers and a report come out; `Recorder` says where it is computed.
//!
//! ```
//! use aquatint::device::{Device, Recorder};
//! use aquatint::stored::{Replacements};
//! use aquatint::quant::QuantizeOptions;
//! use aquatint::{Calibration, bundled, pipeline};
//!
//! # fn main() -> aquatint::Result<()> {
//! pollster::block_on(async {
//!     let model = bundled::checkpoint().await?;
//!     let options = QuantizeOptions { samples: 2, seq_len: 64, ..QuantizeOptions::default() };
//!     let text = [bundled::calibration_text()];
//!     let text = Calibration::from_texts(&model.tokenizer().await?, &text, model.config().vocab_size)?;
//!     let windows = text.draw(options.samples, options.held_out(), options.seq_len, options.sampling, options.seed)?;
//!
//!     let mut rec = Recorder::new(&Device::Cpu);
//!     let mut layers = Replacements::new(); // or a `CheckpointWriter`
//!     let report = pipeline::quantize(&mut rec, &model, &windows, &options, &mut layers, &mut ()).await?;
//!     assert_eq!(layers.len(), 56);
//!     assert!(report.last_error() < 0.2);
//!     Ok(())
//! })
//! # }
//! ```

pub mod bundled;
pub mod calibration;
pub mod checkpoint;
pub mod device;
pub mod engine;
pub mod error;
pub mod eval;
pub mod family;
pub mod generate;
pub mod observer;
pub mod ops;
pub mod pipeline;
pub mod quant;
pub mod record;
pub mod report;
pub mod stored;
pub mod study;
pub mod tokenizer;

pub use calibration::{Calibration, Sampling, TextFile};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use family::ModelConfig;
pub use generate::{GenerateOptions, Generator, Stop};
pub use tokenizer::Tokenizer;
