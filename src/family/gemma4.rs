//! Gemma 4, dense: a norm before and behind each branch, norms of queries, keys and values, wider heads and perhaps
//! values taken from the keys in the layers without a window, and a stored factor behind each block. Equations and keys:
//! transformers, models/gemma4 and models/gemma4_unified.
//!
//! E2B and E4B (per-layer inputs and shared keys) and 26B-A4B (experts) are not implemented.

use super::build::{Line, NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, MOST_HEAD_COLUMNS, Sizes, bounded};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults};
use super::config::window::{self, Windows};
use super::gemma::{cap, causal, embedding_scale, sandwich};
use super::graph::{Activation, Attention, Gains, ModelConfig, Pairs, Value};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// Gemma 4 31B, the language model alone.
pub(super) const GEMMA4_TEXT: Family = Family {
    architecture: "Gemma4ForCausalLM",
    model_type: "gemma4_text",
    keys: Keys::Top,
    read: read_with_inputs,
    about: About {
        name: "Gemma 4 (dense)",
        models: "Gemma 4 31B, the language model alone",
        features: "values from keys, wide global heads, proportional rotation, a factor behind each block",
        missing: "E2B and E4B (per-layer inputs, shared keys), 26B-A4B (experts)",
        fixtures: &["gemma4"],
    },
};

/// Gemma 4 31B with its other modalities.
pub(super) const GEMMA4: Family = Family {
    architecture: "Gemma4ForConditionalGeneration",
    model_type: "gemma4",
    keys: Keys::Text,
    read: read_with_inputs,
    about: About {
        name: "Gemma 4 (dense)",
        models: "Gemma 4 31B",
        features: "as above; the language model of a wrapper",
        missing: "E2B and E4B (per-layer inputs, shared keys), 26B-A4B (experts)",
        fixtures: &["gemma4-wrapper"],
    },
};

/// Gemma 4 12B, the language model alone.
pub(super) const GEMMA4_UNIFIED_TEXT: Family = Family {
    architecture: "Gemma4UnifiedForCausalLM",
    model_type: "gemma4_unified_text",
    keys: Keys::Top,
    read: |family, config| read(family, config, 1024),
    about: About {
        name: "Gemma 4 (dense)",
        models: "Gemma 4 12B, the language model alone",
        features: "as Gemma 4 31B",
        missing: "",
        fixtures: &["gemma4-unified"],
    },
};

/// Gemma 4 12B with its other modalities.
pub(super) const GEMMA4_UNIFIED: Family = Family {
    architecture: "Gemma4UnifiedForConditionalGeneration",
    model_type: "gemma4_unified",
    keys: Keys::Text,
    read: |family, config| read(family, config, 1024),
    about: About {
        name: "Gemma 4 (dense)",
        models: "Gemma 4 12B",
        features: "as above; the language model of a wrapper",
        missing: "",
        fixtures: &["gemma4-unified-wrapper"],
    },
};

/// Reads a model of the architecture of E2B and E4B. A file without `hidden_size_per_layer_input` means 256.
fn read_with_inputs(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let absent = !config.object.contains_key("hidden_size_per_layer_input");
    let width = config.get("hidden_size_per_layer_input");
    if absent || width.is_some_and(|width| width.as_u64() != Some(0)) {
        return Err(config.refuse("hidden_size_per_layer_input", "0, as per-layer inputs are not implemented"));
    }
    if config.flag("enable_moe_block")?.unwrap_or(false) {
        return Err(config.refuse("enable_moe_block", "false, as experts are not implemented"));
    }
    read(family, config, 512)
}

/// Self-attention of one layer.
struct LayerAttention {
    attention: Attention,
    /// Index of the table of angles.
    table: usize,
    /// Whether the values are the keys before their norm.
    values_are_keys: bool,
}

/// Reads a dense model. `window`: the width of a window where the file does not give it.
fn read(family: &Family, config: Fields<'_>, window: usize) -> Result<ModelConfig> {
    causal(config)?;
    if config.get("num_kv_shared_layers").is_some_and(|layers| layers.as_u64() != Some(0)) {
        return Err(config.refuse("num_kv_shared_layers", "0, as layers that share keys are not implemented"));
    }
    let dimensions = Dimensions::read(config, &Sizes { head_dim: Some(256), tied: true, ..Sizes::USUAL })?;
    let (hidden, inner, layers) = (dimensions.hidden_size, dimensions.intermediate_size, dimensions.num_hidden_layers);
    let mut windows = window::by_kind(config, layers, Some(window), |layer| !(layer + 1).is_multiple_of(6))?;
    // As in transformers, the last layer sees all positions whatever the file says.
    windows[layers - 1] = None;
    let attentions = attentions(config, &dimensions, &windows)?;
    let wide = attentions[layers - 1].attention.head_dim;
    let narrow = attentions.iter().find(|layer| layer.table == 1);
    let narrow = narrow.map_or(dimensions.head_dim, |layer| layer.attention.head_dim);
    let full = RopeDefaults { theta: Some(1e6), theta_key: None, scaling_key: None, ..RopeDefaults::PLAIN };
    let sliding = RopeDefaults { theta: Some(1e4), ..full };
    if config.object("rope_parameters")?.is_none() {
        return Err(config.refuse("rope_parameters", "the rotary parameters of both kinds of layers"));
    }
    let ropes = vec![
        Rope::read_kind(config, "full_attention", wide, &full)?,
        Rope::read_kind(config, "sliding_attention", narrow, &sliding)?,
    ];
    let norm = NormStyle::rms(config.positive("rms_norm_eps")?.unwrap_or(1e-6));
    let act = activation(config, "hidden_activation", Activation::GeluTanh)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let embedding = embedding_scale(config, hidden)?;
    let logit_cap = cap(config, "final_logit_softcapping", None)?;
    let blocks = blocks("model.layers.{layer}.", hidden, layers, |line, h, layer| {
        let h = if layer == 0 { line.scale(h, embedding) } else { h };
        let attend = |line: &mut Line, x: Value| {
            let mixed = mix(line, x, &attentions[layer], norm, bias);
            line.linear(mixed, "self_attn.o_proj", hidden, bias)
        };
        let h = sandwich(line, h, [norm; 2], attend, |line, x| line.gated_mlp(x, act, inner, false));
        line.multiply(h, &["layer_scalar".to_owned()], &[1])
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "model.norm", norm);
        let logits = line.linear(x, "lm_head", dimensions.vocab_size, false);
        line.softcap(logits, logit_cap)
    });
    Ok(ModelConfig { head, ..decoder(family, &dimensions, norm, ropes, blocks) })
}

/// Reads self-attention of every layer. The layers without a window have heads of their own width and number.
fn attentions(config: Fields<'_>, dimensions: &Dimensions, windows: &Windows) -> Result<Vec<LayerAttention>> {
    let values_are_keys = config.flag("attention_k_eq_v")?.unwrap_or(false);
    let wide = config.count("global_head_dim")?.unwrap_or(512);
    let few = config.count("num_global_key_value_heads")?.filter(|_| values_are_keys);
    // transformers writes the numbers of single layers into the files that it saves.
    let single = config.object("per_layer_config")?;
    let mut attentions: Vec<LayerAttention> = Vec::new();
    for (layer, &window) in windows.iter().enumerate() {
        let narrow = Attention { scale: 1.0, window, ..dimensions.attention() };
        let attention = match (single, window) {
            (Some(single), _) => match single.object(&layer.to_string())? {
                Some(own) => {
                    let sizes = (own.count("head_dim")?, own.count("num_key_value_heads")?);
                    with_heads(own, narrow, sizes, ["head_dim", "num_key_value_heads"])?
                }
                None => narrow,
            },
            (None, Some(_)) => narrow,
            (None, None) => {
                with_heads(config, narrow, (Some(wide), few), ["global_head_dim", "num_global_key_value_heads"])?
            }
        };
        let full = window.is_none();
        let table = if full { 0 } else { 1 };
        let alike = |other: &LayerAttention| other.table != table || other.attention.head_dim == attention.head_dim;
        if !attentions.iter().all(alike) {
            let expected = "one head_dim for all layers with a window, and one for all others";
            return Err(config.refuse("per_layer_config", expected));
        }
        attentions.push(LayerAttention { attention, table, values_are_keys: values_are_keys && full });
    }
    Ok(attentions)
}

/// `attention` with other columns of a head and another number of key heads, where `sizes` has them. `keys`: their keys
/// in `fields`.
fn with_heads(
    fields: Fields<'_>,
    attention: Attention,
    sizes: (Option<usize>, Option<usize>),
    keys: [&str; 2],
) -> Result<Attention> {
    let head_dim = bounded(fields, keys[0], sizes.0.unwrap_or(attention.head_dim), MOST_HEAD_COLUMNS)?;
    let kv_heads = sizes.1.unwrap_or(attention.kv_heads);
    if !attention.heads.is_multiple_of(kv_heads) {
        return Err(fields.refuse(keys[1], &format!("a divisor of the {} attention heads", attention.heads)));
    }
    Ok(Attention { head_dim, kv_heads, ..attention })
}

/// Attention on `x`, before its last linear layer.
fn mix(line: &mut Line, x: Value, layer: &LayerAttention, norm: NormStyle, bias: bool) -> Value {
    let attention = layer.attention;
    let (queries, keys, head) = (attention.queries(), attention.keys(), attention.head_dim);
    let [q_proj, k_proj, v_proj] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    let [q, k, v] = if layer.values_are_keys {
        let [q, k] = line.linears(x, [(q_proj, queries, bias), (k_proj, keys, bias)]);
        [q, k, k]
    } else {
        line.linears(x, [(q_proj, queries, bias), (k_proj, keys, bias), (v_proj, keys, bias)])
    };
    let q = line.norm_per(q, "self_attn.q_norm", norm, head);
    let q = line.rope(q, layer.table, head, Pairs::Halves);
    let v = line.norm_per(v, "self_attn.v_norm", norm.with_gains(Gains::None), head);
    let k = line.norm_per(k, "self_attn.k_norm", norm, head);
    let k = line.rope(k, layer.table, head, Pairs::Halves);
    line.attention(q, k, v, attention)
}
