//! `cargo xtask demo`: the main job on the bundled model. It needs no set-up beyond a Rust toolchain: without a GPU
//! aquatint runs on the CPU.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::process::{self, Result};

/// Runs `aquatint demo` with the arguments given.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    process::last_step("demo", process::aquatint("run").args(["--", "demo"]).args(arguments))
}
