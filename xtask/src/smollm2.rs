//! `cargo xtask smollm2` fetches SmolLM2-135M-Instruct, the real checkpoint that this project measures with. The script
//! `xtask/fetch_smollm2.py` does the work.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::process::{self, Result};
use crate::python::Environment;

/// Fetches the checkpoint to `folder`; by default to [`place`].
pub fn run(folder: Option<&Path>) -> Result<ExitCode> {
    fetch(&folder.map_or_else(place, Path::to_path_buf))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the default folder of the checkpoint.
pub fn place() -> PathBuf {
    process::target().join("smollm2")
}

/// Fetches the checkpoint to `folder`, unless it is there already.
pub fn fetch(folder: &Path) -> Result<()> {
    if folder.join("model.safetensors").is_file() {
        eprintln!("xtask: checkpoint: {} is already there", folder.display());
        return Ok(());
    }
    let environment = Environment::prepare(&process::target().join("fetch-venv"), "fetch-requirements.txt", &[])?;
    process::step("checkpoint", environment.script("fetch_smollm2.py").arg(folder))
}
