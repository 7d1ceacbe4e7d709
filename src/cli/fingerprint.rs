//! What decides a result: kept with it, so that results are never mixed that do not belong together.

use aquatint::device::{Device, Precision};
use aquatint::eval::tasks::Task;
use aquatint::quant::QuantizeOptions;
use aquatint::{Checkpoint, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Everything that decides a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub aquatint: String,
    pub device: String,
    /// Which kernels the device's large products use: both are exact, but to other bits.
    #[serde(default)]
    pub precision: Precision,
    /// Hash of the model's configuration and of some of each tensor.
    pub model: String,
    /// Hash of the evaluation windows, the tasks and their names, where there are any.
    pub evaluation: Option<String>,
    /// Hash of the calibration windows, where there are any.
    pub calibration: Option<String>,
    /// Of the quantization, where there is one.
    pub options: Option<Value>,
}

impl Fingerprint {
    /// Of the original model, before any text.
    pub fn new(model: &Checkpoint, device: &Device) -> Result<Self> {
        Ok(Self {
            aquatint: env!("CARGO_PKG_VERSION").to_string(),
            device: device.name(),
            precision: device.precision(),
            model: pollster::block_on(model_hash(model))?,
            evaluation: None,
            calibration: None,
            options: None,
        })
    }

    /// Of a quantization of it.
    pub fn quantized(&self, options: &QuantizeOptions, windows: &[Vec<u32>]) -> Self {
        Self {
            calibration: Some(texts_hash([("", windows)], &[])),
            options: Some(serde_json::to_value(options).expect("options are numbers and words")),
            ..self.clone()
        }
    }

    /// What is not as in `expected`, as a phrase.
    pub fn difference(&self, expected: &Self) -> Option<String> {
        let differences = [
            (self.aquatint != expected.aquatint, format!("version {} of aquatint", self.aquatint)),
            (self.device != expected.device, format!("the device {}", self.device)),
            (self.precision != expected.precision, format!("--precision {}", self.precision)),
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
async fn model_hash(model: &Checkpoint) -> Result<String> {
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
