//! Aquatint quantizes language models to 4, 3 and 2 bits on any GPU. Before a weight is rounded, it is corrected for
//! the error that earlier quantized layers cause in its input (Quantization Error Propagation, arXiv 2504.09629).
//!
//! [`pipeline::quantize`] takes a checkpoint and windows of tokens. It hands each quantized layer to a
//! [`pipeline::Output`] and returns a report. The [`device::Recorder`] given to it decides on which device the work is
//! done.
//!
//! The modules in the order of their work: `family` describes a model as data; `checkpoint`, `tokenizer` and
//! `calibration` read models and texts; `device` and `ops` run kernels on a GPU or the CPU; `engine` runs a model;
//! `quant` measures, corrects and rounds layers; `pipeline` goes through a model stop by stop; `stored` holds the
//! quantized layers; `record`, `observer` and `report` describe a run; `eval`, `generate` and `study` use the result.
//!
//! ```
//! use aquatint::device::{Device, Recorder};
//! use aquatint::quant::QuantizeOptions;
//! use aquatint::stored::Replacements;
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
