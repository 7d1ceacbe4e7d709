//! What front ends do with whole runs: write a checkpoint, measure it, resume, forecast, sweep, follow errors through the blocks.
//!
//! Above the pipeline, evaluation and the documents; below the command line and the page. Nothing here prints. Clock, cancellation
//! and progress come from the caller's `Observer`. What needs a file system is left out of wasm.

pub mod checkpoint_run;
pub mod error_growth;
pub mod evaluation;
#[cfg(not(target_arch = "wasm32"))]
pub mod files;
pub mod fingerprint;
pub mod forecast;
#[cfg(not(target_arch = "wasm32"))]
pub mod resume;
pub mod retry;
pub mod shape;
pub mod sweep;
pub mod trial;
