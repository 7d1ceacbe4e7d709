//! The chores of the web page that need libraries. `cargo xtask web` starts this program, so that xtask itself needs no
//! dependencies and compiles in a second.
//!
//! `bindgen WASM OUT` turns the compiled wasm into the files that a browser loads and prints their size. `serve FOLDER PORT`
//! serves a folder.

mod bindgen;
mod serve;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: aquatint-web-tool bindgen WASM OUT | serve FOLDER PORT";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result: Result<(), Box<dyn Error>> = match arguments.as_slice() {
        ["bindgen", wasm, out] => bindgen::run(Path::new(wasm), Path::new(out)),
        ["serve", folder, port] => serve::run(Path::new(folder), port),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aquatint-web-tool: {error}");
            ExitCode::FAILURE
        }
    }
}
