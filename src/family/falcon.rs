//! Falcon: one linear layer for queries, keys and values, a MLP of two layers with GELU, and in most sizes attention and
//! MLP beside each other. Equations and keys: transformers, models/falcon.

use super::build::{Line, NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, require_whole_heads};
use super::graph::{Activation, ModelConfig, Pairs, Value};
use super::{About, Family, Keys, decoder, head};
use crate::{Error, Result};

/// Falcon 7B, 40B, 180B and Falcon 2.
pub(super) const FALCON: Family = Family {
    architecture: "FalconForCausalLM",
    model_type: "falcon",
    keys: Keys::Top,
    read,
    about: About {
        name: "Falcon",
        models: "Falcon 7B, 40B, 180B and Falcon 2",
        features: "fused qkv, one or two norms, attention and MLP beside each other or in line",
        missing: "Falcon-RW (ALiBi)",
        fixtures: &["falcon", "falcon-new", "falcon-one-norm"],
    },
};

const SIZES: Sizes = Sizes {
    hidden: &["hidden_size", "n_embed"],
    inner: &["ffn_hidden_size"],
    inner_factor: Some(4),
    layers: &["num_hidden_layers", "n_layer"],
    heads: &["num_attention_heads", "n_head"],
    kv_heads: &["num_kv_heads", "n_head_kv"],
    most_positions: Some(2048),
    tied: true,
    ..Sizes::USUAL
};

/// The norms before the branches.
enum Norms {
    /// Attention and MLP read one norm.
    Shared,
    /// Attention and MLP read the same values through a norm each.
    Both,
    /// The MLP reads a norm behind attention.
    Serial,
}

/// Reads where the norms stand.
fn norms(config: Fields<'_>, new_architecture: bool) -> Result<Norms> {
    let parallel = config.flag("parallel_attn")?.unwrap_or(true);
    let norms = config.count("num_ln_in_parallel_attn")?.unwrap_or(if new_architecture { 2 } else { 1 });
    match (new_architecture, parallel, norms) {
        (false, false, _) => Ok(Norms::Serial),
        (_, true, 1) => Ok(Norms::Shared),
        (true, true, 2) => Ok(Norms::Both),
        (true, false, _) => Err(config.refuse("parallel_attn", "true beside new_decoder_architecture")),
        _ => Err(config.refuse("num_ln_in_parallel_attn", "1, or 2 beside new_decoder_architecture")),
    }
}

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    if config.flag("alibi")?.unwrap_or(false) {
        return Err(Error::input(
            config.subject,
            "\"alibi\": true",
            "rotary embedding, as clients round the ALiBi of Falcon to bfloat16 and it is not implemented",
            "choose another size of Falcon",
        ));
    }
    let mut dimensions = Dimensions::read(config, &SIZES)?;
    let new_architecture = config.flag("new_decoder_architecture")?.unwrap_or(false);
    let multi_query = config.flag("multi_query")?.unwrap_or(true);
    if !new_architecture {
        dimensions.num_key_value_heads = if multi_query { 1 } else { dimensions.num_attention_heads };
    }
    require_whole_heads(config)?;
    let rope = Rope::read(config, dimensions.head_dim)?;
    let norms = norms(config, new_architecture)?;
    let norm = NormStyle::layer(config.positive("layer_norm_epsilon")?.unwrap_or(1e-5));
    let act = activation(config, "activation", Activation::Gelu)?;
    let bias = config.flag("bias")?.unwrap_or(false);
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    config.only("ff_factor", inner as f64 / hidden as f64)?;
    let paths = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"];
    let blocks = blocks("transformer.h.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, _| {
        let name = if let Norms::Both = norms { "ln_attn" } else { "input_layernorm" };
        let shared = line.norm(h, name, norm);
        let dense = attention(line, shared, &dimensions, bias);
        let after = line.add(h, dense);
        let x = match norms {
            Norms::Shared => shared,
            Norms::Both => line.norm(h, "ln_mlp", norm),
            Norms::Serial => line.norm(after, "post_attention_layernorm", norm),
        };
        let down = line.plain_mlp(x, act, paths, inner, bias);
        line.add(after, down)
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "transformer.ln_f", norm);
        line.linear(x, "lm_head", dimensions.vocab_size, false)
    });
    let embedding = "transformer.word_embeddings.weight".to_owned();
    Ok(ModelConfig { embedding, head, ..decoder(family, &dimensions, norm, vec![rope], blocks) })
}

/// Attention on `x`. The rows of `query_key_value` lie in one run per key head: its query heads, its key and its value.
fn attention(line: &mut Line, x: Value, dimensions: &Dimensions, bias: bool) -> Value {
    let attention = dimensions.attention();
    let (head, group) = (attention.head_dim, attention.heads / attention.kv_heads);
    let rows = attention.queries() + 2 * attention.keys();
    let qkv = line.linear(x, "self_attention.query_key_value", rows, bias);
    let [q, k, v] = line.split(qkv, [group * head, head, head]);
    let (q, k) = (line.rope(q, 0, head, Pairs::Halves), line.rope(k, 0, head, Pairs::Halves));
    let mixed = line.attention(q, k, v, attention);
    line.linear(mixed, "self_attention.dense", dimensions.hidden_size, bias)
}
