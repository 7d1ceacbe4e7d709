//! BLOOM: ALiBi instead of positions, one linear layer for queries, keys and values, a norm behind the embedding, and
//! biases everywhere. Equations and keys: transformers, models/bloom.

use super::build::{Line, NormStyle, blocks};
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::graph::{Activation, Attention, ModelConfig, Value};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// BLOOM and BLOOMZ.
pub(super) const BLOOM: Family = Family {
    architecture: "BloomForCausalLM",
    model_type: "bloom",
    keys: Keys::Top,
    read,
    about: About {
        name: "BLOOM",
        models: "BLOOM and BLOOMZ",
        features: "ALiBi, fused qkv by head, a norm behind the embedding",
        missing: "",
        fixtures: &["bloom"],
    },
};

const SIZES: Sizes = Sizes {
    hidden: &["hidden_size", "n_embed"],
    // No file has such a key: the MLP is four times as wide as the residual stream.
    inner: &["n_inner"],
    inner_factor: Some(4),
    layers: &["n_layer", "num_hidden_layers"],
    heads: &["n_head", "num_attention_heads"],
    kv_heads: &[],
    positions: &["seq_length"],
    most_positions: Some(2048),
    tied: true,
    ..Sizes::USUAL
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &SIZES)?;
    let norm = NormStyle::layer(config.positive("layer_norm_epsilon")?.unwrap_or(1e-5));
    // A shift of all keys of a query alike, which softmax removes.
    config.pass_over(&["offset_alibi"]);
    // Whether the branches are added to what they read, instead of to what their norm reads.
    let behind = config.flag("apply_residual_connection_post_layernorm")?.unwrap_or(false);
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    let paths = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"];
    let blocks = blocks("transformer.h.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, layer| {
        let h = match layer {
            0 => line.outside(|line| line.norm(h, "transformer.word_embeddings_layernorm", norm)),
            _ => h,
        };
        let x = line.norm(h, "input_layernorm", norm);
        let dense = attention(line, x, &dimensions);
        let h = line.add(if behind { x } else { h }, dense);
        let x = line.norm(h, "post_attention_layernorm", norm);
        let down = line.plain_mlp(x, Activation::GeluTanh, paths, inner, true);
        line.add(if behind { x } else { h }, down)
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "transformer.ln_f", norm);
        line.linear(x, "lm_head", dimensions.vocab_size, false)
    });
    let embedding = "transformer.word_embeddings.weight".to_owned();
    Ok(ModelConfig { embedding, head, ..decoder(family, &dimensions, norm, Vec::new(), blocks) })
}

/// Attention on `x`. The rows of `query_key_value` lie in one run per head: its query, its key and its value.
fn attention(line: &mut Line, x: Value, dimensions: &Dimensions) -> Value {
    let attention = Attention { alibi: Some(1.0), ..dimensions.attention() };
    let qkv = line.linear(x, "self_attention.query_key_value", 3 * attention.queries(), true);
    let [q, k, v] = line.split(qkv, [attention.head_dim; 3]);
    let mixed = line.attention(q, k, v, attention);
    line.linear(mixed, "self_attention.dense", dimensions.hidden_size, true)
}
