//! Model families: what a model is, as data. A model is read from `config.json` and described node by node. This module
//! knows no device and no quantization method.
//!
//! `graph` has the types of the description, `build` makes them node by node, `parts` has the sublayers that many
//! families share, `derive` computes what follows from a description, and `config` has the readers of common keys. Each lineage of models is one file, which reads its keys and builds its
//! block, and one or more rows of [`FAMILIES`].

mod arcee;
mod bloom;
mod build;
mod cohere;
pub(crate) mod config;
mod derive;
mod falcon;
mod gemma;
mod gemma4;
mod glm4;
mod gpt2;
mod gpt_neox;
mod gptj;
mod granite;
mod graph;
mod helium;
mod llama;
mod ministral3;
mod muse;
mod olmo;
mod opt;
mod parts;
mod phi3;
mod qwen;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::{Error, Result};
use build::{Line, NormStyle};
use config::dimensions::Dimensions;
use config::fields::{Fields, Reads};
pub(crate) use config::rope::state_both_forms;
pub use config::rope::{Growth, Rope, RopeScaling};
use config::unread::unknown_keys;
pub use derive::{Cut, Fold};
pub use graph::{
    Activation, Attention, Block, Columns, Factors, Gains, Layout, Linear, LinearSpec, ModelConfig, Name, Node, Norm,
    NormKind, Op, Pairs, Value,
};

/// An architecture that this crate can run.
pub struct Family {
    /// Name of the architecture in the list `architectures`.
    pub architecture: &'static str,
    /// Value of `model_type`.
    pub model_type: &'static str,
    /// Where `config.json` has the keys of the language model.
    pub keys: Keys,
    /// Reads and checks the configuration, and builds the model.
    read: fn(&Self, Fields<'_>) -> Result<ModelConfig>,
    /// What people should know of the family.
    pub about: About,
}

/// What people should know of a family.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// A short name. Architectures of one family share it.
    pub name: &'static str,
    /// The models of the family, by the names that people use.
    pub models: &'static str,
    /// What is special about the family.
    pub features: &'static str,
    /// What of the family is not implemented. Empty if nothing is missing.
    pub missing: &'static str,
    /// The random models in tests/fixtures/families whose logits are compared with those of transformers. Empty where only
    /// another architecture of the family has such models.
    pub fixtures: &'static [&'static str],
}

/// Where `config.json` has the keys of the language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// At the top level.
    Top,
    /// In the object `text_config`. The model has other modalities, whose tensors are copied.
    Text,
}

/// Keys of the whole model that also hold for the language model if `text_config` lacks them.
///
/// Whether the output matrix is tied stands in `text_config` (Ministral 3 3B), at the top level (Devstral Small 2), in
/// both (Gemma 4) or in neither (Gemma 3, Mistral Small 3.1). transformers 5 asks the top level, where tying is the default
/// of Gemma and Mistral 3, but does not tie matrices that the file has with different numbers. So Mistral Small 3.1 is
/// untied there, and here by the default of its language model.
const SHARED_KEYS: [&str; 3] = ["tie_word_embeddings", "dtype", "torch_dtype"];

/// All architectures that this crate can run.
pub static FAMILIES: [Family; 34] = [
    llama::LLAMA,
    llama::MISTRAL,
    ministral3::MINISTRAL3,
    ministral3::MISTRAL3,
    qwen::QWEN2,
    qwen::QWEN3,
    smollm3::SMOLLM3,
    granite::GRANITE,
    seed_oss::SEED_OSS,
    arcee::ARCEE,
    helium::HELIUM,
    olmo::OLMO2,
    olmo::OLMO3,
    phi3::PHI3,
    glm4::GLM4,
    muse::MUSE_GLIMMER,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3_TEXT,
    gemma::GEMMA3,
    gemma4::GEMMA4_TEXT,
    gemma4::GEMMA4,
    gemma4::GEMMA4_UNIFIED_TEXT,
    gemma4::GEMMA4_UNIFIED,
    cohere::COHERE,
    cohere::COHERE2,
    falcon::FALCON,
    stablelm::STABLELM,
    starcoder2::STARCODER2,
    opt::OPT,
    bloom::BLOOM,
    gpt2::GPT2,
    gpt_neox::GPT_NEOX,
    gptj::GPTJ,
];

/// The short names of all families, in the order of [`FAMILIES`].
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = FAMILIES.iter().map(|family| family.about.name).collect();
    names.dedup();
    names
}

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
    let expected = format!("a model of one of the families {}", names().join(", "));
    Error::input(subject, found, expected, "choose a model of one of these families")
}

impl ModelConfig {
    /// Reads and checks the text of a `config.json`. `subject` names the file in error messages.
    ///
    /// Errors: `Error::Input` if the text is not a JSON object, if the family is unknown, if a key cannot be used, or if
    /// a key says something that the family does not compute.
    pub fn parse(text: &str, subject: &str) -> Result<Self> {
        Self::from_value(&json_object(text, subject)?, subject)
    }

    /// As [`ModelConfig::parse`], from parsed JSON.
    pub fn from_value(value: &Json, subject: &str) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| not_an_object(subject))?;
        let reads = Reads::default();
        let config = Fields::new(subject, object).recorded(&reads);
        let family = Family::of(config)?;
        let model = match family.keys {
            Keys::Top => {
                let model = (family.read)(family, config)?;
                ModelConfig { unknown_keys: unknown_keys(config, &reads, "")?, ..model }
            }
            Keys::Text => {
                let text = config.object("text_config")?.ok_or_else(|| config.refuse("text_config", "an object"))?;
                let mut object = text.object.clone();
                for key in SHARED_KEYS {
                    if let (None, Some(value)) = (text.get(key), config.get(key)) {
                        object.insert(key.to_owned(), value.clone());
                    }
                }
                let reads = Reads::default();
                let text = Fields::new(subject, &object).recorded(&reads);
                let model = (family.read)(family, text)?;
                ModelConfig { unknown_keys: unknown_keys(text, &reads, "text_config.")?, ..model }
            }
        };
        Ok(model)
    }
}

/// The names by which other files call a model: pairs of the beginning of a name in a description and in the file.
type Names = &'static [(&'static str, &'static str)];

/// All names that files use besides those of the descriptions. Models with other modalities keep the language model
/// below a prefix. Files of before 2023, and files of a model without its head, often lack the outermost one.
const OTHER_NAMES: [Names; 6] = [
    &[("model.", "model.language_model.")],
    &[("model.", "language_model.model."), ("lm_head", "language_model.lm_head")],
    &[("model.", "language_model.")],
    &[("transformer.", "")],
    &[("transformer.", "model.")],
    &[("model.", "")],
];

/// The names of the output matrix in files. The prefix of the layers does not always tell which one a file has.
const HEADS: [&str; 2] = ["lm_head", "language_model.lm_head"];

impl ModelConfig {
    /// Whether this is the language model of a larger model, whose config.json has its keys in `text_config`.
    pub(crate) fn is_part(&self) -> bool {
        FAMILIES.iter().any(|family| family.model_type == self.model_type && family.keys == Keys::Text)
    }

    /// The object with the keys of this model in `config`, the `config.json` of its checkpoint: `config` itself, or its
    /// `text_config`.
    pub(crate) fn keys_in<'a>(&self, config: &'a mut Map<String, Json>) -> &'a mut Map<String, Json> {
        if !self.is_part() {
            return config;
        }
        config["text_config"].as_object_mut().expect("the model was read from this object")
    }

    /// This model with the names of a file. `has`: whether the file has a tensor of that name. The embedding decides
    /// which of the known names are taken, but the output matrix may have another one. If the embedding is missing under
    /// all of them, names stay as they are.
    pub fn with_names_of(self, has: impl Fn(&str) -> bool) -> Self {
        let names = OTHER_NAMES.into_iter().find(|names| {
            let other = Name::new(self.embedding.clone()).renamed(names);
            other.text() != self.embedding && has(other.text())
        });
        let model = match names {
            Some(names) if !has(&self.embedding) => self.renamed(names),
            _ => self,
        };
        let head = model.head_linear();
        match HEADS.into_iter().find(|other| has(&format!("{other}.weight"))) {
            Some(other) if !has(&head.weight()) => model.renamed(&[(&head.name, other)]),
            _ => model,
        }
    }
}

/// A decoder with embedding, final norm and output matrix under the usual names.
fn decoder(
    family: &Family,
    dimensions: &Dimensions,
    norm: NormStyle,
    ropes: Vec<Rope>,
    blocks: Vec<Arc<Block>>,
) -> ModelConfig {
    let &Dimensions { hidden_size, vocab_size, max_position_embeddings, tie_word_embeddings, .. } = dimensions;
    let head = head(hidden_size, |line, h| {
        let x = line.norm(h, "model.norm", norm);
        line.linear(x, "lm_head", vocab_size, false)
    });
    ModelConfig {
        model_type: family.model_type,
        hidden_size,
        vocab_size,
        max_position_embeddings,
        embedding: "model.embed_tokens.weight".to_owned(),
        blocks,
        head,
        tie_word_embeddings,
        ropes,
        unknown_keys: Vec::new(),
    }
}

/// The head of a model: `build` takes the residual stream after the last block, of `width` columns, to the logits.
fn head(width: usize, build: impl FnOnce(&mut Line, Value) -> Value) -> Arc<Block> {
    let (mut line, h) = Line::new("", width);
    let logits = build(&mut line, h);
    Arc::new(line.finish(logits))
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
