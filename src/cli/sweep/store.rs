//! What a sweep keeps on disk: a file per finished cell, which says what it was made with, so that a sweep that was stopped
//! goes on without redoing a cell, and never mixes results that do not belong together.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aquatint::eval::tasks::{Task, TaskResult};
use aquatint::report::{Evaluation, Run};
use aquatint::{Checkpoint, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::write_json;

/// Everything that decides a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub aquatint: String,
    pub device: String,
    /// Hash of the model's configuration and of some of each tensor.
    pub model: String,
    /// Hash of the evaluation windows, the tasks and their names.
    pub evaluation: String,
    /// Hash of the calibration windows, where there are any.
    pub calibration: Option<String>,
    /// Of the quantization, where there is one.
    pub options: Option<Value>,
}

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

impl Fingerprint {
    /// What is not as in `expected`, as a phrase.
    fn difference(&self, expected: &Self) -> Option<String> {
        let differences = [
            (self.aquatint != expected.aquatint, format!("version {} of aquatint", self.aquatint)),
            (self.device != expected.device, format!("the device {}", self.device)),
            (self.model != expected.model, "another model".to_string()),
            (self.options != expected.options, self.options_that_differ(expected)),
            (self.calibration != expected.calibration, "other calibration text".to_string()),
            (self.evaluation != expected.evaluation, "other evaluation text".to_string()),
        ];
        differences.into_iter().find(|(differs, _)| *differs).map(|(_, phrase)| phrase)
    }

    fn options_that_differ(&self, expected: &Self) -> String {
        let (Some(Value::Object(here)), Some(Value::Object(there))) = (&self.options, &expected.options) else {
            return "other options".to_string();
        };
        let differing = here.iter().find(|(name, value)| there.get(*name) != Some(value));
        differing.map_or("other options".to_string(), |(name, value)| format!("{name} {value}"))
    }
}

/// Identifies a model by its configuration and the first row of each tensor: all of the weights would take long to read.
pub async fn model_hash(model: &Checkpoint) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_string(model.raw_config()).unwrap_or_default());
    for (name, _) in model.config().expected_tensors() {
        hash.update(&name);
        hash.update(bytemuck::cast_slice(&model.read_rows(&name, 0..1).await?));
    }
    Ok(hexadecimal(hash))
}

/// Identifies windows of tokens, each with what they are called, and tasks.
pub fn texts_hash<'a>(texts: impl IntoIterator<Item = (&'a str, &'a [Vec<u32>])>, tasks: &[Task]) -> String {
    let mut hash = Sha256::new();
    for (name, windows) in texts {
        hash.update(format!("{name} {} of {}", windows.len(), windows.first().map_or(0, Vec::len)));
        windows.iter().for_each(|window| hash.update(bytemuck::cast_slice(window)));
    }
    tasks.iter().for_each(|task| hash.update(format!("{task:?}")));
    hexadecimal(hash)
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), action, source, remedy: "choose another --out".to_string() }
}
