//! The browser tests of `cargo xtask test`. They run the shaders, the reports and the page in headless Chromium, driven by
//! playwright-core. The tests themselves are in `web/tests`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, Failure, Result};
use crate::{packages, web};

/// The folder of the tests and of the list of their packages.
const TESTS: &str = "web/tests";

/// Whether the browser tests can run.
pub enum Readiness {
    /// They can, with this Chromium.
    Ready(PathBuf),
    /// They cannot. The text names the missing packages.
    Missing(String),
}

/// Looks for Chromium, Node.js and npm. On Debian and Ubuntu it installs what is missing if that needs no password.
///
/// Errors: in CI, where no test may be skipped, a package that is still missing.
pub fn set_up() -> Result<Readiness> {
    let missing = missing();
    if !missing.is_empty() {
        packages::install(&missing);
    }
    let missing = self::missing();
    match chromium() {
        Some(program) if missing.is_empty() => Ok(Readiness::Ready(program)),
        _ => {
            let advice = format!("missing for the browser test: {}", missing.join(", "));
            if process::in_ci() { Err(Failure::new(advice)) } else { Ok(Readiness::Missing(advice)) }
        }
    }
}

/// Returns the Debian packages of the programs that are missing.
fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if chromium().is_none() {
        missing.push("chromium");
    }
    for (program, package) in [("node", "nodejs"), ("npm", "npm")] {
        if !process::succeeds(Command::new(program).arg("--version")) {
            missing.push(package);
        }
    }
    missing
}

/// Looks for Chromium: the one that the variable CHROMIUM names, else one at a usual place. It can emulate WebGPU in software.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let usual = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].map(PathBuf::from);
    named.into_iter().chain(usual).find(|program| program.is_file())
}

/// Builds the page and runs the browser tests. The tests compare the page with the native programs, which must have been built.
///
/// Errors: the page cannot be built, or a test fails.
pub fn run(chromium: &Path) -> Result<()> {
    let page = web::default_folder();
    web::build(&page)?;
    let programs = process::target().join("release");
    let tests = process::root().join(TESTS);
    let installed = process::target().join("web-tests");
    // The tests run from a copy, so that npm installs nothing into the source tree.
    let write = |error| Failure::new(format!("cannot write {}: {error}", installed.display()));
    web::copy(&tests, &installed).map_err(write)?;
    let mut packages = Command::new("npm");
    packages.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&installed);
    process::step("packages", &mut packages)?;
    let mut units = Command::new("node");
    process::step("page units", units.arg("--test").arg(tests.join("tar.test.mjs")))?;
    let list = Command::new(programs.join("examples/shaders")).output();
    let list = list.map_err(|error| Failure::new(format!("cannot list the shaders: {error}")))?;
    std::fs::write(installed.join("shaders.json"), list.stdout).map_err(write)?;
    let mut shaders = Command::new("node");
    shaders.arg(installed.join("shaders.mjs")).arg(installed.join("shaders.json")).env("CHROMIUM", chromium);
    process::step("shaders", &mut shaders)?;
    for test in ["report", "page"] {
        let mut command = Command::new("node");
        command.arg(installed.join(format!("{test}.mjs"))).env("CHROMIUM", chromium).env("PAGE", &page);
        command.env("PROGRAMS", &programs).env("FIXTURES", process::root().join("tests/fixtures"));
        command.env("ARTEFACTS", installed.join("artefacts").join(test));
        process::step(test, &mut command)?;
    }
    Ok(())
}
