//! `cargo xtask test`: the set-up, then formatting, lints, documentation, the web page in a browser, and the tests. It
//! stops at the first step that fails. The tests come last so that their closing lines close the output.

use std::process::{Command, ExitCode};

use crate::browser;
use crate::process::{self, Failure, Result};
use crate::vulkan::{self, Readiness};

/// The variable that tells the GPU tests to report themselves skipped. A reader may set it; CI may not.
const GPU_TESTS: &str = "AQUATINT_GPU_TESTS";

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
    match browser::set_up()? {
        browser::Readiness::Ready(chromium) => browser::run(&chromium)?,
        browser::Readiness::Missing(advice) => notice(&format!("BROWSER TEST SKIPPED: {advice}")),
    }
    process::last_step("tests", &mut tests(&readiness))
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

/// The tests; those that need a GPU are told to skip, with a notice, where no adapter could be set up.
fn tests(readiness: &Readiness) -> Command {
    let mut command = process::cargo(["test", "--release", "--workspace"]);
    command.env_remove(GPU_TESTS);
    if let Readiness::Missing(advice) = readiness {
        notice(&format!("GPU TESTS SKIPPED: {advice}"));
        command.env(GPU_TESTS, "skip");
    }
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

    /// What the command does to the variable: sets it, or removes it.
    fn gpu_variable(command: &Command) -> Option<Option<String>> {
        let (_, value) = command.get_envs().find(|(name, _)| *name == GPU_TESTS)?;
        Some(value.map(|value| value.to_string_lossy().into_owned()))
    }

    #[test]
    fn gpu_tests_are_skipped_only_without_an_adapter() {
        assert_eq!(gpu_variable(&tests(&Readiness::Ready)), Some(None));
        assert_eq!(gpu_variable(&tests(&Readiness::Missing("nothing here".into()))), Some(Some("skip".into())));
    }
}
