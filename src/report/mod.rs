//! Runs as documents: the JSON files and HTML pages that front ends write and read again.
//!
//! Above `record` and `eval`, whose results it shows; below the front ends.

mod document;
#[cfg(not(target_arch = "wasm32"))]
mod escaped;
#[cfg(not(target_arch = "wasm32"))]
pub mod html;
#[cfg(not(target_arch = "wasm32"))]
mod plots;

pub use document::{Document, Evaluation, Run, Sizes};
