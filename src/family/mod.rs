//! `config.json`: the family of a model and its dimensions, checked before anything else is read.

pub(crate) mod config;
mod tensors;

use serde_json::Value;

use crate::{Error, Result};
use config::fields::Fields;
pub(crate) use config::rope::state_both_forms;
pub use config::rope::{Rope, RopeScaling};
pub use tensors::LinearSpec;

/// The architectures this crate can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, TinyLlama, SmolLM and others that share the architecture.
    Llama,
    /// Mistral, with its optional sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on every query and key head.
    Qwen3,
}

impl Family {
    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The name under `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The name under `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn parse(config: Fields<'_>) -> Result<Self> {
        if let Some(architectures) = config.get("architectures") {
            let names = architectures.as_array().map(Vec::as_slice).unwrap_or_default();
            let name = names.first().and_then(Value::as_str);
            let name =
                name.ok_or_else(|| config.refuse("architectures", "a list with the name of one architecture"))?;
            return Self::ALL
                .into_iter()
                .find(|family| family.architecture() == name)
                .ok_or_else(|| unknown_family(config.subject, &format!("architecture \"{name}\"")));
        }
        match config.text("model_type")? {
            Some(name) => Self::ALL
                .into_iter()
                .find(|family| family.model_type() == name)
                .ok_or_else(|| unknown_family(config.subject, &format!("model type \"{name}\""))),
            None => Err(unknown_family(config.subject, "neither \"architectures\" nor \"model_type\"")),
        }
    }
}

fn unknown_family(subject: &str, found: &str) -> Error {
    let supported = Family::ALL.map(Family::architecture).join(", ");
    Error::input(subject, found, format!("one of {supported}"), "choose a model of a supported family")
}

/// Everything about a model that its `config.json` says and this crate needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// ε of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether query and key heads are normalized (Qwen3).
    pub qk_norm: bool,
    /// Whether the output layer is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// How many positions back attention sees, itself included; `None` is all of them.
    pub sliding_window: Option<usize>,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
}

/// A model with more blocks than this is a broken file, and would fill the memory with names.
const MOST_LAYERS: usize = 10_000;

impl ModelConfig {
    /// Reads and checks the text of a `config.json`; `subject` names the file in error messages.
    pub fn parse(text: &str, subject: &str) -> Result<Self> {
        Self::from_value(&json_object(text, subject)?, subject)
    }

    /// As [`ModelConfig::parse`], from JSON that is parsed already.
    pub fn from_value(value: &Value, subject: &str) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| not_an_object(subject))?;
        let config = Fields { subject, object };
        let family = Family::parse(config)?;
        if config.text("hidden_act")?.is_some_and(|name| !matches!(name, "silu" | "swish")) {
            return Err(config.refuse("hidden_act", "\"silu\""));
        }
        let hidden_size = config.required_count("hidden_size")?;
        let num_attention_heads = config.required_count("num_attention_heads")?;
        let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
        let parsed = Self {
            family,
            hidden_size,
            intermediate_size: config.required_count("intermediate_size")?,
            num_hidden_layers: config.required_count("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: config.count("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: head_dim(config, family, hidden_size, num_attention_heads)?,
            vocab_size: config.required_count("vocab_size")?,
            rms_norm_eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope: Rope::parse(config)?,
            qkv_bias: match family {
                Family::Llama | Family::Qwen3 => attention_bias,
                Family::Qwen2 => true,
                Family::Mistral => false,
            },
            o_bias: matches!(family, Family::Llama | Family::Qwen3) && attention_bias,
            mlp_bias: family == Family::Llama && config.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
            sliding_window: sliding_window(config, family)?,
            max_position_embeddings: config.required_count("max_position_embeddings")?,
        };
        parsed.check_dimensions(config)?;
        Ok(parsed)
    }

    fn check_dimensions(&self, config: Fields<'_>) -> Result<()> {
        if self.num_hidden_layers > MOST_LAYERS {
            return Err(config.refuse("num_hidden_layers", &format!("at most {MOST_LAYERS}")));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let heads = self.num_attention_heads;
            return Err(config.refuse("num_key_value_heads", &format!("a divisor of the {heads} attention heads")));
        }
        if !self.head_dim.is_multiple_of(2) {
            let found = format!("heads {} wide", self.head_dim);
            return Err(Error::input(
                config.subject,
                found,
                "an even head_dim",
                "correct the file or download it again",
            ));
        }
        Ok(())
    }
}

/// Parses `text` as one JSON object.
pub(crate) fn json_object(text: &str, subject: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
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

fn head_dim(config: Fields<'_>, family: Family, hidden_size: usize, heads: usize) -> Result<usize> {
    match config.count("head_dim")? {
        Some(width) => Ok(width),
        // transformers gives Qwen3 heads of 128 whatever its width.
        None if family == Family::Qwen3 => Ok(128),
        None if hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        None => Err(config.refuse("num_attention_heads", &format!("a divisor of hidden_size {hidden_size}"))),
    }
}

/// The window that all layers share. Families differ in which field switches it on.
fn sliding_window(config: Fields<'_>, family: Family) -> Result<Option<usize>> {
    let switched_on = match family {
        Family::Llama => false,
        // transformers gives Mistral a window of 4096 where the field is absent, and none where it is null.
        Family::Mistral => !config.object.get("sliding_window").is_some_and(Value::is_null),
        Family::Qwen2 | Family::Qwen3 => config.flag("use_sliding_window")?.unwrap_or(false),
    };
    if !switched_on {
        return Ok(None);
    }
    let window = Some(config.count("sliding_window")?.unwrap_or(4096));
    let layers = config.required_count("num_hidden_layers")?;
    let mixed = |key| config.refuse(key, "the same kind of attention in every layer");
    if let Some(kinds) = config.get("layer_types") {
        let kinds = kinds.as_array().ok_or_else(|| config.refuse("layer_types", "a list of strings"))?;
        if kinds.iter().all(|kind| kind == "full_attention") {
            return Ok(None);
        }
        return if kinds.iter().all(|kind| kind == "sliding_attention") {
            Ok(window)
        } else {
            Err(mixed("layer_types"))
        };
    }
    if family == Family::Mistral {
        return Ok(window);
    }
    // In the Qwen families the first `max_window_layers` layers see everything.
    match config.get("max_window_layers").map_or(Some(28), Value::as_u64) {
        Some(0) => Ok(window),
        Some(full) if full >= layers as u64 => Ok(None),
        _ => Err(mixed("max_window_layers")),
    }
}
