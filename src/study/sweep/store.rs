//! What a sweep keeps: a result per finished cell with its fingerprint. A sweep that was stopped goes on from there, and never mixes
//! results of different models, texts, options or builds.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::fingerprint::Fingerprint;
use crate::error::{Setting, phrase};
use crate::eval::tasks::TaskResult;
use crate::report::{Evaluation, Run};
use crate::{Error, Result};

/// The result of a cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// What was measured; `None` if the quantization failed.
    pub run: Option<Run>,
    /// Accuracies, task by task.
    #[serde(default)]
    pub tasks: Vec<TaskResult>,
    /// The error of the quantization, or of the quantized model on a text or task.
    pub failure: Option<String>,
}

/// The original model on each text and task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Original {
    /// Perplexities, text by text.
    pub texts: Vec<Evaluation>,
    /// Accuracies, task by task.
    #[serde(default)]
    pub tasks: Vec<TaskResult>,
}

/// Keeps results by name.
pub trait Store {
    /// Prepares for writing. Called once before the first result is computed.
    fn prepare(&mut self) -> Result<()>;

    /// What is kept under `name`; `None` if nothing is.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Keeps `bytes` under `name`, all of them or none.
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Where messages say that `name` is.
    fn place(&self, name: &str) -> String;
}

/// What to do with a result that does not belong to the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignResult {
    /// Report an error.
    Refuse,
    /// Compute it again and replace it.
    Replace,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    fingerprint: Fingerprint,
    result: T,
}

/// Reads the result `name`; `None` if it has to be computed.
///
/// Errors: `Error::Input` if `foreign` refuses what is there and its fingerprint is not `expected`.
pub(super) fn load<T: DeserializeOwned>(
    store: &dyn Store,
    name: &str,
    expected: &Fingerprint,
    foreign: ForeignResult,
) -> Result<Option<T>> {
    let Some(bytes) = store.read(name)? else { return Ok(None) };
    let found = match serde_json::from_slice::<Stored<T>>(&bytes) {
        Ok(stored) => match stored.fingerprint.difference(expected) {
            None => return Ok(Some(stored.result)),
            Some(difference) => phrase!["a result made with ", difference.phrase()],
        },
        Err(error) => format!("something else ({error})").into(),
    };
    match foreign {
        ForeignResult::Replace => Ok(None),
        ForeignResult::Refuse => {
            let remedy = phrase!["choose another ", Setting::Out, ", or add ", Setting::Replace, " to redo it"];
            Err(Error::input(store.place(name), found, "a finished part of this sweep", remedy))
        }
    }
}

/// Keeps a result with its fingerprint.
pub(super) fn save<T: Serialize>(
    store: &mut dyn Store,
    name: &str,
    fingerprint: &Fingerprint,
    result: &T,
) -> Result<()> {
    let stored = Stored { fingerprint: fingerprint.clone(), result };
    let mut text = serde_json::to_string_pretty(&stored)
        .map_err(|error| Error::shape("sweep::save", format!("{name}: {error}")))?;
    text.push('\n');
    store.write(name, text.as_bytes())
}

#[cfg(not(target_arch = "wasm32"))]
pub use native::DirectoryStore;

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::fs;
    use std::io::{self, ErrorKind};
    use std::path::{Path, PathBuf};

    use super::super::super::files::write_whole;
    use super::*;

    /// Keeps each result as a JSON file in a directory.
    #[derive(Debug)]
    pub struct DirectoryStore {
        directory: PathBuf,
    }

    impl DirectoryStore {
        /// The results in `directory`, which need not exist yet.
        pub fn new(directory: &Path) -> Self {
            Self { directory: directory.to_owned() }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.directory.join(format!("{name}.json"))
        }
    }

    impl Store for DirectoryStore {
        fn prepare(&mut self) -> Result<()> {
            let cells = self.directory.join("cells");
            fs::create_dir_all(&cells).map_err(|source| io_error(&cells, "create", source))
        }

        fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
            let path = self.file(name);
            match fs::read(&path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(source) => Err(io_error(&path, "read", source)),
            }
        }

        fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
            write_whole(&self.file(name), bytes)
        }

        fn place(&self, name: &str) -> String {
            self.file(name).display().to_string()
        }
    }

    fn io_error(path: &Path, action: &'static str, source: io::Error) -> Error {
        Error::Io { path: path.to_owned(), action, source, remedy: phrase!["choose another ", Setting::Out] }
    }
}
