//! Checkpoints as Hugging Face directories: reading, the GPTQ layout, and writing.

mod bits;
mod gptq;
mod header;
mod load;
mod plan;
mod random;
mod reader;
mod shards;
mod sink;
mod source;
mod writer;

pub use gptq::{GptqSettings, PackedLayout, PackedPart, PackedTensors, storable};
pub use header::{TensorEntry, read_header};
pub use plan::{DEFAULT_SHARD_LIMIT, Format, LayerPlan, WritePlan};
pub use random::random;
pub use reader::{Checkpoint, belongs};
pub use safetensors::Dtype;
pub use sink::Sink;
#[cfg(not(target_arch = "wasm32"))]
pub use sink::{DirectorySink, Existing};
#[cfg(not(target_arch = "wasm32"))]
pub use source::{MappedFile, read_text_file};
pub use source::{MemorySource, Source};
pub use writer::CheckpointWriter;
