//! What the command line lends to a device that it opens: a clock, and a file that remembers the quickest shape of the fast tier.
//!
//! The file is `aquatint/shapes.json` in the user's cache directory, an object with one entry per adapter, driver and version. If
//! it cannot be read or written, the shapes are timed again at the next opening.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

use aquatint::device::Clock;
use aquatint::ops::tier::FrontEnd;
use aquatint::study::files::write_json;
use serde_json::{Map, Value};

/// The command line as a front end.
pub struct CommandLine;

impl FrontEnd for CommandLine {
    fn clock(&self) -> Option<Clock> {
        Some(seconds)
    }

    fn remembered_shape(&self, key: &str) -> Option<String> {
        Some(read()?.get(key)?.as_str()?.to_string())
    }

    fn remember_shape(&self, key: &str, shape: &str) {
        let Some(path) = path() else { return };
        let mut shapes = read().unwrap_or_default();
        shapes.insert(key.to_string(), shape.into());
        if let Some(folder) = path.parent() {
            // The write below fails, too, if this does.
            let _ = std::fs::create_dir_all(folder);
        }
        // An error only means that the shapes are timed again.
        let _ = write_json(&path, &shapes);
    }
}

/// Seconds since the first call.
fn seconds() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// The entries of the file.
fn read() -> Option<Map<String, Value>> {
    serde_json::from_slice(&std::fs::read(path()?).ok()?).ok()
}

/// Where the file is, if the user has a cache directory.
fn path() -> Option<PathBuf> {
    Some(cache_directory()?.join("aquatint").join("shapes.json"))
}

/// The user's cache directory, by the rules of each system.
fn cache_directory() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME");
    absolute("XDG_CACHE_HOME").or_else(|| match std::env::consts::OS {
        "windows" => absolute("LOCALAPPDATA"),
        "macos" => home().map(|home| home.join("Library").join("Caches")),
        _ => home().map(|home| home.join(".cache")),
    })
}
