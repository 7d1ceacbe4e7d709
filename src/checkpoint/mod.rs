//! Checkpoints as Hugging Face directories: reading, writing, and the formats of quantized layers.
//!
//! Reading: `source` gives the bytes of files, `header` and `shards` find the tensors in them, `reader` checks them
//! against `config.json` and reads them, and `load` brings them onto a device. `layout` and `layouts` unpack weights that
//! are quantized or in low precision, and `passengers` knows which tensors may be there without a use. Writing: `plan`
//! lists the content of the new files, `arrange` places it in them, `writer` writes it, and `sink` is the destination.
//! `format` and `formats` store quantized layers, `change` changes the values of other tensors, and `bits` and `floats`
//! encode numbers. `gguf` has models in one GGUF file.
//! `random` makes models with random weights.

mod arrange;
mod bits;
pub mod change;
mod floats;
pub mod format;
pub mod formats;
pub mod gguf;
mod header;
pub mod layout;
pub mod layouts;
mod load;
mod passengers;
mod plan;
mod random;
mod reader;
mod shards;
mod sink;
mod source;
mod writer;

pub use format::{Container, Format, QuantizationSettings};
pub use header::{TensorEntry, read_header};
pub use passengers::TensorGroup;
pub use plan::{DEFAULT_SHARD_LIMIT, LayerPlan, WritePlan};
pub use random::random;
pub use reader::Checkpoint;
pub use safetensors::Dtype;
pub use shards::belongs;
pub use sink::Sink;
#[cfg(not(target_arch = "wasm32"))]
pub use sink::{DirectorySink, Existing, FileSink};
#[cfg(not(target_arch = "wasm32"))]
pub use source::{MappedFile, read_text_file};
pub use source::{MemorySource, Source};
pub use writer::CheckpointWriter;
