//! Aquatint in a web page: what the worker (`static/worker.js`) calls. Empty on every target but wasm32.
//!
//! The library does the work; here are only its ends: files that come from the page by byte ranges ([`files`]), files that go
//! to the browser's private file system ([`files`] again), the page's words for options ([`options`], [`names`]),
//! and progress ([`progress`]). [`session`] ties them together.

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

pub use session::Session;
