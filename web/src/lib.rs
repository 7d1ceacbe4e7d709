//! Aquatint in a web page. The page's worker (`static/worker.js`) calls this crate, which is empty on every target but wasm32.
//!
//! The library does the work, and this crate connects it to the page. [`files`] reads models by byte ranges and writes results to
//! the browser's private file system. [`options`] and [`names`] translate the page's options and their names. [`progress`] sends
//! progress. [`session`] has the calls of the page; [`run`] and [`continuation`] carry out the two long ones.

#![cfg(target_arch = "wasm32")]

mod continuation;
mod failure;
mod files;
mod names;
mod options;
mod progress;
mod run;
mod session;
mod summary;
mod text;

pub use session::{Session, families};
