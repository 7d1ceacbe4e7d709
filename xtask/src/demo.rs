//! `cargo xtask demo` quantizes the bundled model. It needs a Rust toolchain and nothing else: without a GPU aquatint runs on the
//! CPU.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::process::{self, Result};

/// Builds aquatint and runs `aquatint demo` with `arguments`.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    process::last_step("demo", process::aquatint("run").args(["--", "demo"]).args(arguments))
}
