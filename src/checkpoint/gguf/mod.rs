//! Models in one GGUF file, as llama.cpp reads them (formats.md, section d).
//!
//! `container` reads and writes the head of a file: the key-value pairs of `metadata`, and the list of tensors.
//! `types` has the types of tensors, `blocks`, `fields` and `k_blocks` pack and unpack their elements, and `mixtures`
//! chooses the type of each tensor as llama.cpp does. `architectures` knows what llama.cpp calls the tensors and the settings
//! of each family, and `tokenizer` how it describes a tokenizer. `model` puts these together for a model that is
//! written, and `read` for one that is read.

pub mod architectures;
pub mod blocks;
pub mod container;
mod fields;
mod k_blocks;
pub mod metadata;
pub mod mixtures;
pub mod model;
pub mod read;
pub mod tokenizer;
pub mod types;
