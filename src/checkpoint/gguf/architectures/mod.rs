//! What llama.cpp calls the models that this crate runs: names of tensors, and the metadata that describe a model.
//!
//! `table` has one row per architecture, which serves both directions. Writing, [`Mapping::of_model`] takes the numbers
//! off the description of a model (`facts`), puts them under their keys (`keys`, `rope`) and names the tensors (`names`,
//! `rows`). Reading, [`config_of`] makes the `config.json` of the model that llama.cpp computes (`config`), and the
//! mapping of that model finds its tensors in the file.
//!
//! A model is written only if reading gives the same model again (`difference`). So a setting that an architecture has
//! no key for is refused, whatever it is.

mod config;
mod contents;
mod difference;
mod facts;
mod keys;
mod names;
mod rope;
mod rows;
mod table;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use super::metadata::{Metadata, Value};
use crate::family::{FAMILIES, ModelConfig};
use crate::{Error, Result};
pub use config::config_of;
pub use contents::Contents;
use facts::Facts;
use keys::Scoped;
pub use rows::RowOrder;
use table::{ARCHITECTURES, Architecture, Windows};

/// The tensor with the factor of the queries of Muse Glimmer.
const MUSE_FACTOR: &str = "blk.0.attn_q_norm.weight";

/// The tensors whose values describe the model. A reader gives those that the file has in the values of `Contents`.
pub const VALUES_READ: [&str; 4] = [rope::FREQUENCIES, rope::LONG, rope::SHORT, MUSE_FACTOR];

/// A model as llama.cpp knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    /// `general.architecture`, `general.type`, `general.size_label`, and all keys of the architecture.
    pub metadata: Metadata,
    /// The tensors that hold those of the model, in model order.
    pub tensors: Vec<GgufTensor>,
    /// Tensors that follow from `config.json`.
    pub added: Vec<AddedTensor>,
    /// What llama.cpp computes in another way than the model, as sentences without a full stop.
    pub notes: Vec<String>,
    /// For each tensor of the model, its place in `tensors`, and its number among the sources there.
    places: HashMap<String, (usize, usize)>,
}

/// A tensor of a GGUF file that holds one or more tensors of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// Shape, `[outputs, inputs]` for a matrix, also where the model stores it transposed.
    pub shape: Vec<usize>,
    /// The tensors of the model that it holds, one after the other. Only norms of single heads are more than one.
    pub sources: Vec<String>,
    /// The order of its rows.
    pub rows: RowOrder,
    /// What is added to the numbers of the model. 1 where the model multiplies by 1 + w.
    pub added: f32,
}

/// A tensor of a GGUF file that is not stored in the model. All are of one dimension and of the type F32.
#[derive(Debug, Clone, PartialEq)]
pub struct AddedTensor {
    /// Name in the file.
    pub name: String,
    /// Its numbers.
    pub values: Vec<f32>,
}

impl AddedTensor {
    fn new(name: &str, values: &[f64]) -> Self {
        Self { name: name.to_owned(), values: values.iter().map(|&value| value as f32).collect() }
    }
}

impl GgufTensor {
    /// The tensor `name`, which holds the numbers of `source` as they are.
    fn new(name: &str, source: &str, shape: &[usize]) -> Self {
        let sources = vec![source.to_owned()];
        Self { name: name.to_owned(), shape: shape.to_vec(), sources, rows: RowOrder::Same, added: 0.0 }
    }

    /// Whether llama.cpp needs the tensor as F32: norms, biases and everything else of one dimension, and learned
    /// positions.
    pub fn is_float(&self) -> bool {
        self.shape.len() == 1 || self.name.ends_with("_norm.weight") || self.name == "position_embd.weight"
    }
}

impl Mapping {
    /// Maps `model` to the architecture of llama.cpp that computes it. `subject` names the model in messages.
    ///
    /// Errors: `Error::Input` if llama.cpp does not know the family, or if it cannot compute the model as it is.
    pub fn of_model(subject: &str, model: &ModelConfig) -> Result<Self> {
        let row = ARCHITECTURES.iter().find(|row| row.model_types.contains(&model.model_type));
        let architecture = row.ok_or_else(|| unknown_family(subject, model))?;
        let tensors = names::tensors(subject, model, architecture)?;
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", Value::Text(architecture.name.to_owned()));
        metadata.set("general.type", Value::Text("model".to_owned()));
        metadata.set("general.size_label", Value::Text(size_label(&tensors)));
        let facts = Facts { model };
        let mut keys = Scoped { architecture: architecture.name, metadata: &mut metadata };
        architecture.all_keys().for_each(|key| keys.set_number(key, &facts));
        set_windows(&mut keys, &facts, architecture);
        if architecture.needs_windows() && facts.sliding().is_none() {
            let expected = "at least one layer with a sliding window";
            return Err(write_refused(subject, "attention to all positions in every layer", expected, architecture));
        }
        let mut added = rope::write(&mut keys, &facts, architecture);
        added.extend(factors_of_queries(&facts, architecture));
        let sources = tensors.iter().enumerate().flat_map(|(place, tensor)| {
            tensor.sources.iter().enumerate().map(move |(part, name)| (name.clone(), (place, part)))
        });
        let places = sources.collect();
        let mut mapping = Self { metadata, tensors, added, notes: Vec::new(), places };
        let theirs = mapping.computed(subject)?;
        mapping.notes = difference::check(subject, model, &theirs, architecture)?;
        Ok(mapping)
    }

    /// The model that llama.cpp computes.
    fn computed(&self, subject: &str) -> Result<ModelConfig> {
        let tensors = self.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone()));
        let added = self.added.iter().map(|tensor| (tensor.name.clone(), vec![tensor.values.len()]));
        let shapes: BTreeMap<String, Vec<usize>> = tensors.chain(added).collect();
        let values = self.added.iter().map(|tensor| (tensor.name.clone(), tensor.values.clone())).collect();
        let contents = Contents { subject, metadata: &self.metadata, shapes: &shapes, values: &values };
        ModelConfig::from_value(&Json::Object(config_of(&contents)?), subject)
    }

    /// The tensor of the file that holds the tensor `name` of the model, and which of its sources that is.
    pub fn holder(&self, name: &str) -> Option<(&GgufTensor, usize)> {
        self.places.get(name).map(|&(place, part)| (&self.tensors[place], part))
    }
}

/// The error for a model that llama.cpp cannot compute. `expected`: what it computes instead of `found`.
fn write_refused(subject: &str, found: &str, expected: &str, architecture: &Architecture) -> Error {
    let expected = format!("{expected}, as llama.cpp computes the architecture \"{}\"", architecture.name);
    Error::input(subject, found, expected, "write the model in another format")
}

/// The error for a model of a family that llama.cpp lacks.
fn unknown_family(subject: &str, model: &ModelConfig) -> Error {
    let family = FAMILIES.iter().find(|family| family.model_type == model.model_type);
    let name = family.map_or(model.model_type, |family| family.about.name);
    let found = format!("a model of the family {name}");
    Error::input(subject, found, "a family that llama.cpp knows", "write the model in another format")
}

/// States which layers have a window.
fn set_windows(keys: &mut Scoped<'_>, facts: &Facts<'_>, architecture: &Architecture) {
    let slides: Vec<bool> = facts.attentions().iter().map(|attention| attention.window.is_some()).collect();
    let width = facts.sliding().and_then(|attention| attention.window);
    let width_key = "attention.sliding_window";
    let pattern_key = "attention.sliding_window_pattern";
    match architecture.windows {
        Windows::Never => {}
        Windows::Period(usual) => {
            let Some(width) = width else { return };
            keys.set(width_key, width);
            let fits =
                |period: &usize| slides.iter().enumerate().all(|(i, &slides)| (i % period + 1 < *period) == slides);
            if !fits(&usual)
                && let Some(period) = (1..=slides.len() + 1).find(fits)
            {
                keys.set(pattern_key, period);
            }
        }
        Windows::List => {
            if let Some(width) = width {
                keys.set(width_key, width);
                keys.set(pattern_key, slides);
            }
        }
    }
}

/// The norms of query and key heads that Muse Glimmer has in llama.cpp. They carry the factor of the queries.
fn factors_of_queries(facts: &Facts<'_>, architecture: &Architecture) -> Vec<AddedTensor> {
    if architecture.name != "muse-glimmer" {
        return Vec::new();
    }
    let norms = facts.attentions().into_iter().enumerate().flat_map(|(layer, attention)| {
        let factor = f64::from(attention.scale) * (attention.head_dim as f64).sqrt();
        let norm = |side: &str, factor: f64| {
            AddedTensor::new(&format!("blk.{layer}.attn_{side}_norm.weight"), &vec![factor; attention.head_dim])
        };
        [norm("q", factor), norm("k", 1.0)]
    });
    norms.collect()
}

/// The number of parameters as a short text, such as `1.7B` or `135M`.
fn size_label(tensors: &[GgufTensor]) -> String {
    let parameters: f64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as f64).sum();
    let (size, unit) = match parameters {
        n if n > 1e12 => (n / 1e12, "T"),
        n if n > 1e9 => (n / 1e9, "B"),
        n if n > 1e6 => (n / 1e6, "M"),
        n => (n / 1e3, "K"),
    };
    let decimals = if size.round() < 10.0 { 1 } else { 0 };
    format!("{size:.decimals$}{unit}")
}
