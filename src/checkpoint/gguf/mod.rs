//! Models in one GGUF file, as llama.cpp reads them (formats.md, section d).
//!
//! `metadata` has the key-value pairs that describe a model.

pub mod metadata;
