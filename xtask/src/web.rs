//! `cargo xtask web`: the web page as a folder of static files, and a server for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::process::{self, Failure, Result};
use crate::wasm;

/// Cargo's profile of the wasm: small.
const PROFILE: &str = "web";
/// The page's own files.
const STATIC: &str = "web/static";
/// The bundled model, which the page offers.
const MODEL: &str = "tests/fixtures/tiny-llama";

/// Where the page is built if no other folder is named.
pub fn default_folder() -> PathBuf {
    process::target().join("web")
}

/// Builds the page and serves it until stopped.
pub fn serve(port: &str) -> Result<ExitCode> {
    let folder = default_folder();
    build(&folder)?;
    process::last_step("web", tool().arg("serve").arg(folder).arg(port))
}

/// Builds the page into `folder`.
pub fn build_only(folder: Option<&Path>) -> Result<ExitCode> {
    let folder = folder.map_or_else(default_folder, Path::to_path_buf);
    build(&folder)?;
    eprintln!("xtask: the page is in {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the page beside `folder` and moves it there when it is whole.
pub fn build(folder: &Path) -> Result<()> {
    process::step("wasm", &mut wasm::cargo(["build", "--package", "aquatint-web", "--profile", PROFILE])?)?;
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = folder.with_file_name(name);
    let write = |error: std::io::Error| Failure::new(format!("cannot write {}: {error}", partial.display()));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(write)?;
    }
    copy(&process::root().join(STATIC), &partial).map_err(write)?;
    copy(&process::root().join(MODEL), &partial.join("tiny-llama")).map_err(write)?;
    let compiled = wasm::output(PROFILE).join("aquatint_web.wasm");
    process::step("bindgen", tool().arg("bindgen").arg(compiled).arg(&partial))?;
    if folder.exists() {
        replaceable(folder)?;
        fs::remove_dir_all(folder).map_err(write)?;
    }
    fs::rename(&partial, folder).map_err(write)
}

/// Errors: the folder has something else in it than a page of ours.
fn replaceable(folder: &Path) -> Result<()> {
    let vacant = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if vacant || folder.join("aquatint_web.js").is_file() {
        return Ok(());
    }
    Err(Failure::new(format!("{} holds something else than the page; name another folder", folder.display())))
}

/// The program for what needs libraries.
pub fn tool() -> Command {
    process::cargo(["run", "--quiet", "--release", "--package", "aquatint-web-tool", "--"])
}

/// Copies the files of a folder, not the folders in it.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
