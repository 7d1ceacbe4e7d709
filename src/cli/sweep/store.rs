//! What a sweep keeps on disk: a file per finished cell, which says what it was made with, so that a sweep that was stopped
//! goes on without redoing a cell, and never mixes results that do not belong together.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aquatint::eval::tasks::TaskResult;
use aquatint::report::{Evaluation, Run};
use aquatint::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::fingerprint::Fingerprint;
use super::super::write_json;

/// What became of a cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// What was measured; `None` if the run broke down.
    pub run: Option<Run>,
    /// Accuracies, a task after the other.
    #[serde(default)]
    pub tasks: Vec<TaskResult>,
    /// What broke down: the run, or the quantized model on a text.
    pub failure: Option<String>,
}

/// The original model on each text and task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Original {
    pub texts: Vec<Evaluation>,
    #[serde(default)]
    pub tasks: Vec<TaskResult>,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    fingerprint: Fingerprint,
    result: T,
}

/// The directory of a sweep.
pub struct Store {
    directory: PathBuf,
    /// Whether results that do not fit are taken for none.
    force: bool,
}

impl Store {
    pub fn new(directory: &Path, force: bool) -> Self {
        Self { directory: directory.to_owned(), force }
    }

    /// Makes the directory. Errors: where it cannot be made.
    pub fn create(&self) -> Result<()> {
        let cells = self.directory.join("cells");
        std::fs::create_dir_all(&cells).map_err(|source| io_error(&cells, "create", source))
    }

    /// The file of a cell.
    pub fn cell(&self, name: &str) -> PathBuf {
        self.directory.join("cells").join(format!("{name}.json"))
    }

    /// The file of the original model's evaluation.
    pub fn original(&self) -> PathBuf {
        self.directory.join("original.json")
    }

    /// The result in the file `path`, if there is one. Errors: one that is not `expected`, unless forced.
    pub fn load<T: DeserializeOwned>(&self, path: &Path, expected: &Fingerprint) -> Result<Option<T>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error(path, "read", source)),
        };
        let found = match serde_json::from_slice::<Stored<T>>(&bytes) {
            Ok(stored) => match stored.fingerprint.difference(expected) {
                None => return Ok(Some(stored.result)),
                Some(difference) => format!("a result made with {difference}"),
            },
            Err(error) => format!("something else ({error})"),
        };
        if self.force {
            return Ok(None);
        }
        let remedy = "choose another --out, or add --force to redo it";
        Err(Error::input(path.display().to_string(), found, "a finished part of this sweep", remedy))
    }

    /// Writes a result, whole or not at all.
    pub fn save<T: Serialize>(&self, path: &Path, fingerprint: &Fingerprint, result: &T) -> Result<()> {
        write_json(path, &Stored { fingerprint: fingerprint.clone(), result })
    }
}

fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), action, source, remedy: "choose another --out".into() }
}
