//! Keys of the metadata and of `config.json` that hold the same number. One list serves both directions.

use serde_json::{Map, Value as Json};

use super::super::metadata::{Metadata, Value};
use super::facts::Facts;
use crate::family::NormKind;

/// A number of a model under its two names.
#[derive(Clone, Copy)]
pub(super) struct Key {
    /// Key of the metadata, without the name of the architecture.
    pub file: &'static str,
    /// Key of `config.json`. Empty if it has none.
    pub config: &'static str,
    /// Reads the number off a model. `None` if the model has no such number.
    pub of: fn(&Facts<'_>) -> Option<Json>,
}

const fn key(file: &'static str, config: &'static str, of: fn(&Facts<'_>) -> Option<Json>) -> Key {
    Key { file, config, of }
}

/// A whole number for the metadata.
fn count(number: usize) -> Option<Json> {
    Some(number.into())
}

/// A number with a fraction for the metadata.
fn float(number: f32) -> Option<Json> {
    Some(f64::from(number).into())
}

const LAYERS: Key = key("block_count", "num_hidden_layers", |facts| count(facts.model.blocks.len()));
const POSITIONS: Key =
    key("context_length", "max_position_embeddings", |facts| count(facts.model.max_position_embeddings));
const HIDDEN: Key = key("embedding_length", "hidden_size", |facts| count(facts.model.hidden_size));
const INNER: Key = key("feed_forward_length", "intermediate_size", |facts| count(facts.inner()));
const HEADS: Key = key("attention.head_count", "num_attention_heads", |facts| count(facts.full().heads));
const KV_HEADS: Key = key("attention.head_count_kv", "num_key_value_heads", |facts| {
    let heads: Vec<usize> = facts.attentions().iter().map(|attention| attention.kv_heads).collect();
    let same = heads.iter().all(|&other| other == heads[0]);
    if same { count(heads[0]) } else { Some(heads.into()) }
});
const HEAD_DIM: Key = key("attention.key_length", "head_dim", |facts| count(facts.full().head_dim));
const VALUE_DIM: Key = key("attention.value_length", "", |facts| count(facts.full().head_dim));
const VOCABULARY: Key = key("vocab_size", "vocab_size", |facts| count(facts.model.vocab_size));
const RMS: Key =
    key("attention.layer_norm_rms_epsilon", "rms_norm_eps", |facts| facts.epsilon(NormKind::Rms).and_then(float));

/// ε of LayerNorm under its name `config`.
const fn layer_epsilon(config: &'static str) -> Key {
    key("attention.layer_norm_epsilon", config, |facts| facts.epsilon(NormKind::Layer).and_then(float))
}

/// This key under another name of `config.json`.
const fn renamed(key: Key, config: &'static str) -> Key {
    Key { config, ..key }
}

/// The sizes of most families, and ε of RMSNorm.
pub(super) const RMS_SIZES: &[Key] =
    &[LAYERS, POSITIONS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM, VOCABULARY, RMS];

/// The sizes of most families, and ε of LayerNorm.
pub(super) const LAYER_SIZES: &[Key] = &[
    LAYERS,
    POSITIONS,
    HIDDEN,
    INNER,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    VALUE_DIM,
    VOCABULARY,
    layer_epsilon("layer_norm_eps"),
];

/// The sizes of StarCoder2.
pub(super) const STARCODER2: &[Key] = &[
    LAYERS,
    POSITIONS,
    HIDDEN,
    INNER,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    VALUE_DIM,
    VOCABULARY,
    layer_epsilon("norm_epsilon"),
];

/// The sizes of GPT-NeoX, and whether attention and MLP stand beside each other.
pub(super) const GPT_NEOX: &[Key] = &[
    LAYERS,
    POSITIONS,
    HIDDEN,
    INNER,
    HEADS,
    renamed(KV_HEADS, ""),
    renamed(HEAD_DIM, ""),
    VALUE_DIM,
    VOCABULARY,
    layer_epsilon("layer_norm_eps"),
    key("use_parallel_residual", "use_parallel_residual", |facts| Some(facts.is_parallel().into())),
];

/// The sizes of GPT-2.
pub(super) const GPT2: &[Key] = &[
    renamed(LAYERS, "n_layer"),
    renamed(POSITIONS, "n_positions"),
    renamed(HIDDEN, "n_embd"),
    renamed(INNER, "n_inner"),
    renamed(HEADS, "n_head"),
    renamed(KV_HEADS, ""),
    renamed(HEAD_DIM, ""),
    VALUE_DIM,
    VOCABULARY,
    layer_epsilon("layer_norm_epsilon"),
];

/// The sizes of BLOOM.
pub(super) const BLOOM: &[Key] = &[
    renamed(LAYERS, "n_layer"),
    renamed(POSITIONS, "seq_length"),
    HIDDEN,
    renamed(INNER, "n_inner"),
    renamed(HEADS, "n_head"),
    renamed(KV_HEADS, ""),
    renamed(HEAD_DIM, ""),
    VALUE_DIM,
    VOCABULARY,
    layer_epsilon("layer_norm_epsilon"),
];

/// The sizes of Falcon, and the order of the rows of its fused matrix in the file.
pub(super) const FALCON: &[Key] = &[
    LAYERS,
    POSITIONS,
    HIDDEN,
    renamed(INNER, "ffn_hidden_size"),
    HEADS,
    renamed(KV_HEADS, "num_kv_heads"),
    renamed(HEAD_DIM, ""),
    VALUE_DIM,
    VOCABULARY,
    layer_epsilon("layer_norm_epsilon"),
    key("tensor_data_layout", "", |_| Some("jploski".into())),
];

/// The four numbers by which Granite multiplies. The one of the logits is a divisor.
pub(super) const GRANITE: &[Key] = &[
    key("attention.scale", "attention_multiplier", |facts| float(facts.full().scale)),
    key("embedding_scale", "embedding_multiplier", |facts| float(facts.embedding_scale().unwrap_or(1.0))),
    key("residual_scale", "residual_multiplier", |facts| float(facts.residual_scale().unwrap_or(1.0))),
    key("logit_scale", "logits_scaling", |facts| float(1.0 / facts.logit_scale().unwrap_or(1.0))),
];

/// The factor of the logits of Command R and Command A, and that their angles are not scaled.
pub(super) const COHERE: &[Key] = &[
    key("logit_scale", "logit_scale", |facts| float(facts.logit_scale().unwrap_or(1.0))),
    key("rope.scaling.type", "", |_| Some("none".into())),
];

/// The growth of the queries of Ministral 3.
pub(super) const MISTRAL3: &[Key] = &[key("attention.temperature_scale", "", |facts| facts.growth().map(Json::from))];

/// The window of Phi-3, which llama.cpp reads and does not use. 0 stands for none.
pub(super) const PHI3: &[Key] =
    &[key("attention.sliding_window", "", |facts| count(facts.attention(0).window.unwrap_or(0)))];

const LOGIT_CAP: Key =
    key("final_logit_softcapping", "final_logit_softcapping", |facts| facts.logit_cap().and_then(float));

/// The bounds of Gemma 2.
pub(super) const GEMMA2: &[Key] =
    &[key("attn_logit_softcapping", "attn_logit_softcapping", |facts| facts.full().softcap.and_then(float)), LOGIT_CAP];

/// The bound of the logits of Gemma 3.
pub(super) const GEMMA3: &[Key] = &[LOGIT_CAP];

/// The second kind of heads of Gemma 4, and what its dense models lack.
pub(super) const GEMMA4: &[Key] = &[
    LOGIT_CAP,
    key("attention.key_length_swa", "", |facts| count(facts.sliding().unwrap_or(facts.full()).head_dim)),
    key("attention.value_length_swa", "", |facts| count(facts.sliding().unwrap_or(facts.full()).head_dim)),
    key("attention.shared_kv_layers", "", |_| count(0)),
    key("embedding_length_per_layer_input", "", |_| count(0)),
];

/// The factor and the bound of the logits of Muse Glimmer.
pub(super) const MUSE: &[Key] =
    &[key("logit_scale", "output_multiplier", |facts| float(facts.logit_scale().unwrap_or(1.0))), LOGIT_CAP];

/// Metadata whose keys begin with the name of an architecture.
pub(super) struct Scoped<'a> {
    pub architecture: &'static str,
    pub metadata: &'a mut Metadata,
}

impl Scoped<'_> {
    /// Sets `key` below the name of the architecture.
    pub fn set(&mut self, key: &str, value: impl Into<Json>) {
        self.metadata.set(format!("{}.{key}", self.architecture), stored(&value.into()));
    }

    /// Sets the number of the model under `key`, if the model has it.
    pub fn set_number(&mut self, key: &Key, facts: &Facts<'_>) {
        if let Some(value) = (key.of)(facts) {
            self.set(key.file, value);
        }
    }
}

/// A number, a text, a truth value or a list of these in the types that llama.cpp reads.
fn stored(value: &Json) -> Value {
    match value {
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Array(list) => Value::List(list.iter().map(stored).collect()),
        Json::String(text) => Value::Text(text.clone()),
        number => match number.as_u64() {
            Some(count) => Value::U32(count as u32),
            None => Value::F32(number.as_f64().unwrap_or_default() as f32),
        },
    }
}

/// The numbers under `keys` of a file, under their names in `config.json`.
pub(super) fn config_of<'a>(
    keys: impl Iterator<Item = &'a Key>,
    number: impl Fn(&str) -> Option<Json>,
) -> Map<String, Json> {
    let named = keys.filter(|key| !key.config.is_empty());
    named.filter_map(|key| Some((key.config.to_owned(), number(key.file)?))).collect()
}
