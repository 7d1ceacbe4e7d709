//! Chores of the web page that need libraries: `cargo xtask web` calls this, so that xtask itself compiles in a second.
//!
//! `bindgen WASM OUT` turns the compiled wasm into what a browser loads and says how large it is; `serve FOLDER` serves it.

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
