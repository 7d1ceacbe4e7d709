//! `cargo xtask demo`: the main job on the bundled model. It needs no set-up beyond a Rust toolchain: without a GPU
//! aquatint runs on the CPU.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::process::{self, Result};

/// Runs `aquatint demo` in release mode, in the reader's own folder so that relative paths mean what they should.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let mut command = process::cargo(["run", "--release", "--bin", "aquatint", "--manifest-path"]);
    command.arg(process::root().join("Cargo.toml")).args(["--", "demo"]).args(arguments);
    if let Ok(folder) = std::env::current_dir() {
        command.current_dir(folder);
    }
    process::last_step("demo", &mut command)
}
