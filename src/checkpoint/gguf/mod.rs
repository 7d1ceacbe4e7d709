//! Models in one GGUF file, as llama.cpp reads them (formats.md, section d).
//!
//! `metadata` has the key-value pairs that describe a model, and `architectures` knows what llama.cpp calls the tensors and
//! the settings of each family.

pub mod architectures;
pub mod metadata;
