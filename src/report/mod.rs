//! The documents of one or more runs, and the page that shows one.

mod document;
#[cfg(not(target_arch = "wasm32"))]
pub mod html;
#[cfg(not(target_arch = "wasm32"))]
mod plots;

pub use document::{Document, Evaluation, Run, Sizes};
