//! What decides a result. Records carry a fingerprint, so that results of different runs are never mixed.
//!
//! Below `resume` and `sweep`, which compare the fingerprint of a record with that of the run at hand.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::device::{Device, Precision, shader};
use crate::error::{Phrase, Setting};
use crate::eval::tasks::Task;
use crate::quant::QuantizeOptions;
use crate::{Checkpoint, Result};

/// Revision of everything that computes results and is no shader: CPU twins, methods, the pipeline, dependencies that compute.
///
/// Raise it with every change of a bit of any result. Changes of shaders are noticed without it.
const REVISION: u32 = 3;

/// Everything that decides a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Version of this crate.
    pub aquatint: String,
    /// Revision of the kernels, as [`kernels`] gives it; empty in records from before there was one.
    #[serde(default)]
    pub kernels: String,
    /// Name of the device.
    pub device: String,
    /// Which kernels the device uses for large products. Both kinds are exact, but differ in their last bits.
    #[serde(default)]
    pub precision: Precision,
    /// Hash of the model's configuration and of the first row of each tensor.
    pub model: String,
    /// Hash of the evaluation windows and tasks with their names; `None` without evaluation.
    pub evaluation: Option<String>,
    /// Hash of the calibration windows; `None` without quantization.
    pub calibration: Option<String>,
    /// Options of the quantization; `None` without one.
    pub options: Option<Value>,
}

impl Fingerprint {
    /// The fingerprint of the original model on `device`, without any text.
    ///
    /// Errors: those of reading the model.
    pub async fn new(model: &Checkpoint, device: &Device) -> Result<Self> {
        Ok(Self {
            aquatint: env!("CARGO_PKG_VERSION").to_string(),
            kernels: kernels(),
            device: device.name(),
            precision: device.precision(),
            model: model_hash(model).await?,
            evaluation: None,
            calibration: None,
            options: None,
        })
    }

    /// The fingerprint of the same model quantized with `options` and calibrated on `windows`.
    pub fn quantized(&self, options: &QuantizeOptions, windows: &[Vec<u32>]) -> Self {
        Self {
            calibration: Some(texts_hash([("", windows)], &[])),
            options: Some(serde_json::to_value(options).expect("options are numbers and words")),
            ..self.clone()
        }
    }

    /// The first thing that differs from `expected`, with its value here; `None` if the two are equal.
    pub fn difference(&self, expected: &Self) -> Option<Difference> {
        let differences = [
            (self.aquatint != expected.aquatint, Difference::Version(self.aquatint.clone())),
            (self.kernels != expected.kernels, Difference::Kernels(self.kernels.clone())),
            (self.device != expected.device, Difference::Device(self.device.clone())),
            (self.precision != expected.precision, Difference::Precision(self.precision)),
            (self.model != expected.model, Difference::Model),
            (self.options != expected.options, self.differing_option(expected)),
            (self.calibration != expected.calibration, Difference::Calibration),
            (self.evaluation != expected.evaluation, Difference::Evaluation),
        ];
        differences.into_iter().find(|(differs, _)| *differs).map(|(_, difference)| difference)
    }

    fn differing_option(&self, expected: &Self) -> Difference {
        let (Some(Value::Object(here)), Some(Value::Object(there))) = (&self.options, &expected.options) else {
            return Difference::Options;
        };
        let differing = here.iter().find(|(name, value)| there.get(*name) != Some(value));
        differing.map_or(Difference::Options, |(name, value)| Difference::Option(format!("{name} {value}")))
    }
}

/// What sets a result apart from the one that was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Another version of this crate.
    Version(String),
    /// Another revision of the kernels; empty if it was not recorded.
    Kernels(String),
    /// Another device, by name.
    Device(String),
    /// Other kernels for large products.
    Precision(Precision),
    /// Another model.
    Model,
    /// Another value of an option, as "name value".
    Option(String),
    /// Other options, where no single one can be named.
    Options,
    /// Other calibration windows.
    Calibration,
    /// Other evaluation windows or tasks.
    Evaluation,
}

impl Difference {
    /// What the result was made with: a phrase that follows "made with".
    pub fn phrase(&self) -> Phrase {
        match self {
            Self::Version(version) => format!("version {version} of aquatint").into(),
            Self::Kernels(revision) if revision.is_empty() => "an earlier revision of aquatint's kernels".into(),
            Self::Kernels(revision) => format!("revision {revision} of aquatint's kernels").into(),
            Self::Device(name) => format!("the device {name}").into(),
            Self::Precision(precision) => Setting::Precision.set_to(precision),
            Self::Model => "another model".into(),
            Self::Option(option) => option.into(),
            Self::Options => "other options".into(),
            Self::Calibration => "other calibration text".into(),
            Self::Evaluation => "other evaluation text".into(),
        }
    }
}

/// The revision of the kernels of this build: a number kept by hand and a hash of all shaders, whose comments do not count.
pub fn kernels() -> String {
    let mut hash = Sha256::new();
    for (path, text) in shader::texts() {
        hash.update(format!("{path}\n"));
        let code = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        code.for_each(|line| hash.update(format!("{line}\n")));
    }
    format!("{REVISION}-{}", &hexadecimal(hash)[..12])
}

/// Identifies a model by its configuration and the first row of each tensor. Reading all weights would take too long.
async fn model_hash(model: &Checkpoint) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_string(model.raw_config()).unwrap_or_default());
    for (name, _) in model.config().expected_tensors() {
        hash.update(&name);
        hash.update(bytemuck::cast_slice(&model.read_rows(&name, 0..1).await?));
    }
    Ok(hexadecimal(hash))
}

/// Identifies windows of tokens, each text by its name, and tasks.
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
