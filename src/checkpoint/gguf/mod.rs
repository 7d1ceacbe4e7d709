//! Models in one GGUF file, as llama.cpp reads them (formats.md, section d).
//!
//! `metadata` has the key-value pairs that describe a model, and `tokenizer` those that describe its tokenizer.

pub mod metadata;
pub mod tokenizer;
