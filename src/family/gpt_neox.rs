//! GPT-NeoX and Pythia: attention and MLP beside each other, a norm for each, one linear layer for queries, keys and
//! values, and a quarter of each head turned. Equations and keys: transformers, models/gpt_neox.

use super::build::{Line, NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults, rotated_columns};
use super::graph::{Activation, ModelConfig, Pairs, Value};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// GPT-NeoX 20B, Pythia, Dolly 2 and others of the architecture.
pub(super) const GPT_NEOX: Family = Family {
    architecture: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    keys: Keys::Top,
    read,
    about: About {
        name: "GPT-NeoX and Pythia",
        models: "GPT-NeoX 20B and Pythia",
        features: "attention and MLP beside each other or in line, fused qkv by head, partial rotation",
        missing: "",
        fixtures: &["gpt_neox", "gpt_neox-serial"],
    },
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &Sizes { kv_heads: &[], ..Sizes::USUAL })?;
    let share = config.positive("rotary_pct")?.unwrap_or(0.25);
    let rotated = rotated_columns(config, dimensions.head_dim, f64::from(share))?;
    let defaults = RopeDefaults { theta_key: Some("rotary_emb_base"), ..RopeDefaults::PLAIN };
    let rope = Rope::read_with(config, rotated, &defaults)?;
    let norm = NormStyle::layer(config.positive("layer_norm_eps")?.unwrap_or(1e-5));
    let act = activation(config, "hidden_act", Activation::Gelu)?;
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let parallel = config.flag("use_parallel_residual")?.unwrap_or(true);
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    let paths = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"];
    let blocks = blocks("gpt_neox.layers.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, _| {
        let x = line.norm(h, "input_layernorm", norm);
        let dense = attention(line, x, &dimensions, bias);
        let after = line.add(h, dense);
        let x = line.norm(if parallel { h } else { after }, "post_attention_layernorm", norm);
        let down = line.plain_mlp(x, act, paths, inner, true);
        line.add(after, down)
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "gpt_neox.final_layer_norm", norm);
        line.linear(x, "embed_out", dimensions.vocab_size, false)
    });
    let embedding = "gpt_neox.embed_in.weight".to_owned();
    Ok(ModelConfig { embedding, head, ..decoder(family, &dimensions, norm, vec![rope], blocks) })
}

/// Attention on `x`. The rows of `query_key_value` lie in one run per head: its query, its key and its value.
fn attention(line: &mut Line, x: Value, dimensions: &Dimensions, bias: bool) -> Value {
    let (attention, head) = (dimensions.attention(), dimensions.head_dim);
    let qkv = line.linear(x, "attention.query_key_value", 3 * attention.queries(), bias);
    let [q, k, v] = line.split(qkv, [head; 3]);
    let (q, k) = (line.rope(q, 0, head, Pairs::Halves), line.rope(k, 0, head, Pairs::Halves));
    let mixed = line.attention(q, k, v, attention);
    line.linear(mixed, "attention.dense", dimensions.hidden_size, bias)
}
