//! Model families: what a model is, as data. A model is read from `config.json` and described node by node. This module
//! knows no device and no quantization method.
//!
//! `graph` has the types of the description, `build` makes them node by node, `derive` computes what follows from them,
//! and `config` has the readers of common keys. Each lineage of models is one file, which reads its keys and builds its
//! block, and one or more rows of [`FAMILIES`].

mod build;
pub(crate) mod config;
mod derive;
mod graph;
mod llama;
mod qwen;
mod stablelm;

use std::sync::Arc;

use serde_json::Value as Json;

use crate::{Error, Result};
use build::Line;
use config::dimensions::Dimensions;
use config::fields::Fields;
pub(crate) use config::rope::state_both_forms;
pub use config::rope::{Growth, Rope, RopeScaling};
pub use derive::{Cut, Fold};
pub use graph::{Activation, Attention, Block, Linear, LinearSpec, ModelConfig, Name, Node, Norm, NormKind, Op, Value};

/// An architecture that this crate can run.
pub struct Family {
    /// Name of the architecture in the list `architectures`.
    pub architecture: &'static str,
    /// Value of `model_type`.
    pub model_type: &'static str,
    /// Reads and checks the configuration, and builds the model.
    read: fn(&Self, Fields<'_>) -> Result<ModelConfig>,
}

/// All architectures that this crate can run.
pub static FAMILIES: [Family; 5] = [llama::LLAMA, llama::MISTRAL, qwen::QWEN2, qwen::QWEN3, stablelm::STABLELM];

impl Family {
    /// Finds the family of a configuration by `architectures` or, if that is absent, by `model_type`. Errors:
    /// `Error::Input` if it is none of [`FAMILIES`].
    fn of(config: Fields<'_>) -> Result<&'static Self> {
        if let Some(architectures) = config.get("architectures") {
            let names = architectures.as_array().map(Vec::as_slice).unwrap_or_default();
            let name = names.first().and_then(Json::as_str);
            let name =
                name.ok_or_else(|| config.refuse("architectures", "a list with the name of one architecture"))?;
            return FAMILIES
                .iter()
                .find(|family| family.architecture == name)
                .ok_or_else(|| unknown_family(config.subject, &format!("architecture \"{name}\"")));
        }
        match config.text("model_type")? {
            Some(name) => FAMILIES
                .iter()
                .find(|family| family.model_type == name)
                .ok_or_else(|| unknown_family(config.subject, &format!("model type \"{name}\""))),
            None => Err(unknown_family(config.subject, "neither \"architectures\" nor \"model_type\"")),
        }
    }
}

fn unknown_family(subject: &str, found: &str) -> Error {
    let supported: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
    let expected = format!("one of {}", supported.join(", "));
    Error::input(subject, found, expected, "choose a model of a supported family")
}

impl ModelConfig {
    /// Reads and checks the text of a `config.json`. `subject` names the file in error messages.
    ///
    /// Errors: `Error::Input` if the text is not a JSON object, if the family is unknown, or if a key cannot be used.
    pub fn parse(text: &str, subject: &str) -> Result<Self> {
        Self::from_value(&json_object(text, subject)?, subject)
    }

    /// As [`ModelConfig::parse`], from parsed JSON.
    pub fn from_value(value: &Json, subject: &str) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| not_an_object(subject))?;
        let config = Fields { subject, object };
        let family = Family::of(config)?;
        (family.read)(family, config)
    }
}

/// A model of `family` whose blocks all have the description `block`. Embedding, final norm and output matrix have the
/// usual names.
fn decoder(family: &Family, dimensions: Dimensions, norm: (NormKind, f32), rope: Rope, block: Block) -> ModelConfig {
    let Dimensions { hidden_size, vocab_size, max_position_embeddings, tie_word_embeddings, .. } = dimensions;
    let (mut head, h) = Line::new("", hidden_size);
    let x = head.norm(h, "model.norm", norm);
    let logits = head.linear(x, "lm_head", vocab_size, false);
    ModelConfig {
        model_type: family.model_type,
        hidden_size,
        vocab_size,
        max_position_embeddings,
        embedding: "model.embed_tokens.weight".to_owned(),
        blocks: std::iter::repeat_n(Arc::new(block), dimensions.num_hidden_layers).collect(),
        head: Arc::new(head.finish(logits)),
        tie_word_embeddings,
        ropes: vec![rope],
    }
}

/// Parses `text` as one JSON object. Errors: `Error::Input` if it is anything else.
pub(crate) fn json_object(text: &str, subject: &str) -> Result<Json> {
    match serde_json::from_str(text) {
        Ok(value @ Json::Object(_)) => Ok(value),
        Ok(_) => Err(not_an_object(subject)),
        Err(error) => Err(Error::input(
            subject,
            format!("text that is not JSON ({error})"),
            "a JSON object",
            "correct the file or download it again",
        )),
    }
}

fn not_an_object(subject: &str) -> Error {
    Error::input(subject, "JSON that is no object", "a JSON object", "correct the file or download it again")
}
