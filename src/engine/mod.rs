//! Runs a model that `family` describes. The pipeline and evaluation load one block at a time ([`network`]). Generation
//! keeps the whole model on the device ([`decoder`]). Both run blocks with [`block`].

pub mod block;
pub mod decoder;
pub mod network;
pub mod rope;

pub use decoder::Decoder;
