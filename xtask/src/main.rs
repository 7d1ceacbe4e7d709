//! `cargo xtask`: set-up and chores, so that no shell lore is needed. Nothing but the standard library, so that it
//! compiles in a second on a fresh machine.
//!
//! One file per chore ([`checks`], [`demo`]), [`vulkan`] for what a machine needs before GPU tests can run, and
//! [`process`] for running a command and saying how it went.

mod checks;
mod demo;
mod process;
mod vulkan;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask CHORE [ARGUMENTS]

Chores:
  test              Set-up, then formatting, lints, documentation and every test
  demo [ARGUMENTS]  Builds aquatint and quantizes the bundled model; arguments go to `aquatint demo`
  help              This text

Set-up means a Vulkan loader and Mesa's software adapter (lavapipe) for the GPU tests. On Debian and Ubuntu `test`
installs what is missing if it runs as root or sudo asks for no password; elsewhere it names the packages and skips the
GPU tests. With CI=true anything missing is an error.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let chore = arguments.next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let result = match (chore.to_str(), arguments.as_slice()) {
        (Some("test"), []) => checks::run(),
        (Some("demo"), rest) => demo::run(rest),
        (Some("help" | "--help" | "-h"), []) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        (Some(""), _) => return usage("name a chore"),
        (Some("test" | "help" | "--help" | "-h"), [extra, ..]) => {
            return usage(&format!("`{}` takes no argument {extra:?}", chore.display()));
        }
        _ => return usage(&format!("there is no chore {chore:?}")),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Says what was wrong with the command line, then how to use it.
fn usage(complaint: &str) -> ExitCode {
    eprintln!("xtask: {complaint}\n\n{HELP}");
    ExitCode::from(2)
}
