//! Rules of the source tree that the compiler does not know.

use std::fs;
use std::path::{Path, PathBuf};

/// All Rust files below `folder`.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_library_names_no_option_of_the_command_line() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // In code, two hyphens and a letter can only stand in a string.
    let option = regex::Regex::new("--[[:alpha:]]").unwrap();
    let (mut found, mut lines) = (Vec::new(), 0);
    for path in rust_files(&source) {
        let place = path.strip_prefix(&source).unwrap();
        if place.starts_with("cli") || place == Path::new("main.rs") {
            continue;
        }
        for (index, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            lines += 1;
            if option.is_match(line) && !line.trim_start().starts_with("//") {
                found.push(format!("{}:{}: {}", place.display(), index + 1, line.trim()));
            }
        }
    }
    assert!(lines > 10_000, "only {lines} lines were found");
    assert!(found.is_empty(), "name a Setting instead:\n{}", found.join("\n"));
}
