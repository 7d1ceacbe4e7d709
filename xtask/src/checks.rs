//! `cargo xtask test`: the set-up, then formatting, lints, documentation, the web page in a browser, and the tests. It stops at
//! the first step that fails. The tests come last so that their closing lines close the output.
//!
//! libtest decides which tests are ignored when it compiles them. So the tests are compiled with a feature that tells which
//! devices the machine has.

use std::process::{Command, ExitCode};

use crate::browser;
use crate::process::{self, Failure, Result};
use crate::vulkan::{self, Readiness};

/// With the value `skip`, this variable has the GPU tests ignored. A reader may set it; in CI it has no effect.
const GPU_TESTS: &str = "AQUATINT_GPU_TESTS";

/// What the tests can use of this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Adapter {
    /// No adapter: tests run on the CPU.
    None,
    /// The software adapter, with portable kernels.
    Portable,
    /// The software adapter, with the kernels of the fast tier too.
    Fast,
}

/// Runs every check.
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

/// What there is, said aloud where something is missing. The programs must have been built.
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

/// Says what nobody may overlook.
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

/// The programs of the workspace. All of it, as the tests build it: another selection of packages has other features, and cargo
/// would compile everything again.
fn programs() -> Command {
    process::cargo(["build", "--release", "--workspace", "--bins", "--examples"])
}

/// The tests. Those that need more than `adapter` are shown as ignored.
fn tests(adapter: Adapter) -> Command {
    let mut command = process::cargo(["test", "--release", "--workspace"]);
    match adapter {
        Adapter::None => command.args(["--features", "aquatint/test-without-gpu"]),
        Adapter::Portable => &mut command,
        Adapter::Fast => command.args(["--features", "aquatint/test-matrix-units"]),
    };
    command
}

/// Whether `cargo SUBCOMMAND` is there. Where it is not, names the command that installs it; in CI that is an error.
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

    /// The features that the tests are compiled with.
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
