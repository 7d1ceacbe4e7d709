//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::{Error, Result};

/// Writes `value` to `path` as indented JSON, as [`write_whole`] does.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| write_error(path, error.into()))?;
    text.push('\n');
    write_whole(path, text.as_bytes())
}

/// Writes `bytes` beside `path` and moves the file there, so that `path` never holds half of them.
///
/// Errors: `Error::Io` naming `path`.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let write = || -> io::Result<()> {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    write().map_err(|error| {
        // The file may not exist. The error to report is the first one.
        let _ = fs::remove_file(temporary);
        write_error(path, error)
    })
}

/// The error of a file that cannot be written.
pub fn write_error(path: &Path, source: io::Error) -> Error {
    let remedy = "choose another file, or make room".into();
    Error::Io { path: path.to_owned(), action: "write", source, remedy }
}
