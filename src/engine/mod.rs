//! Runs a model that `family` describes: one block at a time for measuring, all of it for generating.

pub mod block;
pub mod decoder;
pub mod network;
pub mod rope;

pub use decoder::Decoder;
