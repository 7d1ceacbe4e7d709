//! `cargo xtask test` runs every check: set-up, formatting, lints, documentation, the browser tests, and the tests of the
//! workspace. It stops at the first step that fails. The tests come last, so that the output ends with their results.
//!
//! A test is marked as ignored when it is compiled. So the tests are compiled with a feature that says which devices this machine
//! has.

use std::process::{Command, ExitCode};

use crate::browser;
use crate::process::{self, Failure, Result};
use crate::vulkan::{self, Readiness};

/// If this variable is `skip`, the GPU tests are ignored. It has no effect in CI.
const GPU_TESTS: &str = "AQUATINT_GPU_TESTS";

/// The adapter that the tests can use on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Adapter {
    /// No adapter. The GPU tests are ignored.
    None,
    /// An adapter that runs the portable kernels only. The tests of the fast tier are ignored.
    Portable,
    /// An adapter that runs the kernels of the fast tier too. No test is ignored for lack of a device.
    Fast,
}

/// Runs every check and returns the exit code of the tests. Errors: the first step before them that fails.
pub fn run() -> Result<ExitCode> {
    let unwanted = std::env::var(GPU_TESTS).is_ok_and(|value| value == "skip") && !process::in_ci();
    let readiness = if unwanted { Readiness::Missing(format!("{GPU_TESTS}=skip is set")) } else { vulkan::set_up()? };
    if component_installed("fmt", "rustfmt")? {
        process::step("formatting", &mut process::cargo(["fmt", "--all", "--check"]))?;
    }
    if component_installed("clippy", "clippy")? {
        process::step("lints", &mut lints())?;
    }
    process::step("documentation", &mut documentation())?;
    process::step("programs", &mut programs())?;
    match browser::set_up()? {
        browser::Readiness::Ready(chromium) => browser::run(&chromium)?,
        browser::Readiness::Missing(advice) => notice(&format!("BROWSER TEST SKIPPED: {advice}")),
    }
    process::last_step("tests", &mut tests(adapter(&readiness)?))
}

/// Returns the adapter for the tests, and prints a notice if tests have to be ignored. The programs must have been built.
fn adapter(readiness: &Readiness) -> Result<Adapter> {
    if let Readiness::Missing(advice) = readiness {
        notice(&format!("GPU TESTS IGNORED: {advice}"));
        return Ok(Adapter::None);
    }
    let tier = vulkan::tier(&process::target().join("release/aquatint"))?;
    if tier.starts_with("fast") {
        return Ok(Adapter::Fast);
    }
    notice(&format!("TESTS OF THE FAST TIER IGNORED: the adapter is {tier}"));
    Ok(Adapter::Portable)
}

/// Prints a line that the reader must not overlook.
fn notice(line: &str) {
    let rule = "*".repeat(70);
    eprintln!("xtask: {rule}\nxtask: {line}\nxtask: {rule}");
}

fn lints() -> Command {
    process::cargo(["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn documentation() -> Command {
    let mut command = process::cargo(["doc", "--release", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    command
}

/// Builds the programs of the whole workspace, as the tests do. With another selection of packages, dependencies would have other
/// features, and cargo would compile them again.
fn programs() -> Command {
    process::cargo(["build", "--release", "--workspace", "--bins", "--examples"])
}

/// Runs the tests. Those that need more than `adapter` are shown as ignored.
fn tests(adapter: Adapter) -> Command {
    let mut command = process::cargo(["test", "--release", "--workspace"]);
    match adapter {
        Adapter::None => command.args(["--features", "aquatint/test-without-gpu"]),
        Adapter::Portable => &mut command,
        Adapter::Fast => command.args(["--features", "aquatint/test-matrix-units"]),
    };
    command
}

/// Tells whether `cargo SUBCOMMAND` is installed, and prints the command that installs it if it is not.
///
/// Errors: in CI, a missing component.
fn component_installed(subcommand: &str, component: &str) -> Result<bool> {
    if process::succeeds(process::cargo([subcommand, "--version"]).env_remove("RUSTFLAGS")) {
        return Ok(true);
    }
    let advice = format!("{component} is not installed (rustup component add {component})");
    if process::in_ci() {
        return Err(Failure::new(advice));
    }
    eprintln!("xtask: {advice}; its check is skipped");
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the features that the tests are compiled with.
    fn features(adapter: Adapter) -> Option<String> {
        let command = tests(adapter);
        let mut arguments = command.get_args().skip_while(|argument| *argument != "--features");
        arguments.nth(1).map(|features| features.to_string_lossy().into_owned())
    }

    #[test]
    fn tests_are_ignored_only_where_their_device_is_missing() {
        assert_eq!(features(Adapter::None).as_deref(), Some("aquatint/test-without-gpu"));
        assert_eq!(features(Adapter::Portable), None);
        assert_eq!(features(Adapter::Fast).as_deref(), Some("aquatint/test-matrix-units"));
    }
}
