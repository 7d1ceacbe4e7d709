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

/// The rooms of the library, from the bottom up. A room imports from rooms below it and from itself.
const ROOMS: [&str; 18] = [
    "error",
    "family",
    "tokenizer",
    "device",
    "ops",
    "stored",
    "calibration",
    "checkpoint",
    "bundled",
    "engine",
    "quant",
    "record",
    "observer",
    "pipeline",
    "eval",
    "generate",
    "report",
    "study",
];

/// What a room never imports, though it lies below.
const NEVER: [(&str, &[&str]); 6] = [
    ("ops", &["family", "tokenizer"]),
    ("quant", &["checkpoint", "family", "engine", "tokenizer"]),
    ("family", &["device", "ops"]),
    ("device", &["ops", "family"]),
    ("record", &["pipeline", "family", "engine"]),
    ("report", &["pipeline", "engine", "checkpoint", "study"]),
];

/// The room of a file of the library, by its path below `src`.
fn room(place: &Path) -> String {
    let first = place.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// The other rooms that a file names in code, each with a line.
fn imports(path: &Path, own: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let code: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let code: Vec<&str> = code.into_iter().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let named = regex::Regex::new(r"crate::(?:\{([^;]*?)\};|([a-z_]+))").unwrap();
    let mut found = Vec::new();
    for capture in named.captures_iter(&code) {
        let rooms: Vec<&str> = match (capture.get(1), capture.get(2)) {
            (Some(list), _) => list.as_str().split(',').map(|item| item.trim().split("::").next().unwrap()).collect(),
            (_, Some(one)) => vec![one.as_str()],
            _ => Vec::new(),
        };
        let is_room = |room: &&str| room.starts_with(|first: char| first.is_lowercase()) && *room != own;
        found.extend(rooms.into_iter().filter(is_room).map(|room| (room.to_string(), capture[0].to_string())));
    }
    found
}

#[test]
fn imports_run_downward_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut arrows) = (Vec::new(), 0);
    for path in rust_files(&source) {
        let place = path.strip_prefix(&source).unwrap();
        let own = room(place);
        if ["cli", "main", "lib"].contains(&own.as_str()) {
            continue;
        }
        let floor = |name: &str| ROOMS.iter().position(|room| *room == name);
        let here = floor(&own).unwrap_or_else(|| panic!("{} is in no room: add it to ROOMS", place.display()));
        for (other, line) in imports(&path, &own) {
            arrows += 1;
            let never = NEVER.iter().any(|(room, others)| *room == own && others.contains(&other.as_str()));
            if never || floor(&other).is_none_or(|there| there >= here) {
                found.push(format!("{}: {line} leads from {own} to {other}", place.display()));
            }
        }
    }
    assert!(arrows > 300, "only {arrows} imports were found");
    assert!(found.is_empty(), "imports that run up, or that are never wanted:\n{}", found.join("\n"));
}

#[test]
fn the_library_reads_no_clock_and_no_home() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let forbidden = regex::Regex::new(r#"Instant::now|SystemTime::now|"HOME"|XDG_|println!|eprintln!"#).unwrap();
    let mut found = Vec::new();
    for path in rust_files(&source) {
        let place = path.strip_prefix(&source).unwrap();
        if ["cli", "main"].contains(&room(place).as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().take_while(|line| *line != "#[cfg(test)]").enumerate();
        let code = code.filter(|(_, line)| !line.trim_start().starts_with("//") && forbidden.is_match(line));
        found.extend(code.map(|(index, line)| format!("{}:{}: {}", place.display(), index + 1, line.trim())));
    }
    assert!(
        found.is_empty(),
        "only a front end reads a clock, finds the user's folders or prints:\n{}",
        found.join("\n")
    );
}
