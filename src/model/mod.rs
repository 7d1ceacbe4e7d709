//! What a model is: its configuration, its tensors by name and shape, and its tokenizer.

pub mod config;
pub mod tokenizer;

pub use config::ModelConfig;
pub use tokenizer::Tokenizer;
