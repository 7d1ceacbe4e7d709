//! What a model is: its configuration, its tokenizer, and its blocks as ops. Knows no method and no wgpu.

pub mod block;
pub mod config;
pub mod decoder;
pub mod network;
pub mod rope;
pub mod tokenizer;

pub use config::ModelConfig;
pub use decoder::Decoder;
pub use tokenizer::Tokenizer;
