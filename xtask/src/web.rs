//! `cargo xtask web` builds the web page as a folder of static files, and serves it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::process::{self, Failure, Result};
use crate::wasm;

/// Cargo's profile for the wasm, which makes it small.
const PROFILE: &str = "web";
/// The folder of the page's static files.
const STATIC: &str = "web/static";
/// The folder of the bundled model, which the page offers.
const MODEL: &str = "tests/fixtures/tiny-llama";

/// Returns the default folder of the built page.
pub fn default_folder() -> PathBuf {
    process::target().join("web")
}

/// Builds the page and serves it until the process is stopped.
pub fn serve(port: &str) -> Result<ExitCode> {
    let folder = default_folder();
    build(&folder)?;
    process::last_step("web", tool().arg("serve").arg(folder).arg(port))
}

/// Builds the page into `folder`; by default into [`default_folder`].
pub fn build_only(folder: Option<&Path>) -> Result<ExitCode> {
    let folder = folder.map_or_else(default_folder, Path::to_path_buf);
    build(&folder)?;
    eprintln!("xtask: the page is in {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the page in a folder beside `folder`, and moves it to `folder` when it is complete.
///
/// Errors: the build fails, or `folder` holds something else than a page.
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

/// Checks that `folder` may be replaced. Errors: it holds something else than a page that this chore built.
fn replaceable(folder: &Path) -> Result<()> {
    let vacant = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if vacant || folder.join("aquatint_web.js").is_file() {
        return Ok(());
    }
    Err(Failure::new(format!("{} holds something else than the page; name another folder", folder.display())))
}

/// Returns the command that runs `web/tool`, which does the chores of the page that need libraries.
pub fn tool() -> Command {
    process::cargo(["run", "--quiet", "--release", "--package", "aquatint-web-tool", "--"])
}

/// Copies the files of a folder. Folders in it are not copied.
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
