//! `cargo xtask smollm2`: the real checkpoint that measurements are made with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::process::{self, Result};
use crate::python::Environment;

/// Fetches the checkpoint to `folder`, or to its place in the target folder.
pub fn run(folder: Option<&Path>) -> Result<ExitCode> {
    fetch(&folder.map_or_else(place, Path::to_path_buf))?;
    Ok(ExitCode::SUCCESS)
}

/// Where the checkpoint lies unless the reader says otherwise.
pub fn place() -> PathBuf {
    process::target().join("smollm2")
}

/// Fetches the checkpoint to `folder` unless it is there.
pub fn fetch(folder: &Path) -> Result<()> {
    if folder.join("model.safetensors").is_file() {
        eprintln!("xtask: checkpoint: {} is already there", folder.display());
        return Ok(());
    }
    let environment = Environment::prepare(&process::target().join("fetch-venv"), "fetch-requirements.txt", &[])?;
    process::step("checkpoint", environment.script("fetch_smollm2.py").arg(folder))
}
