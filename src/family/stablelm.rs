//! StableLM: LayerNorm, rotary embedding of a quarter of each head, a MLP gated by SiLU, and in some sizes attention and MLP
//! beside each other on one norm. Equations and keys: transformers, models/stablelm.

use super::build::Line;
use super::config::dimensions::{Dimensions, require_silu};
use super::config::fields::Fields;
use super::config::rope::{Rope, rotated_columns};
use super::graph::{Activation, Attention, Block, ModelConfig, NormKind};
use super::{Family, decoder};
use crate::Result;

/// StableLM 3B and StableLM 2.
pub(super) const STABLELM: Family = Family { architecture: "StableLmForCausalLM", model_type: "stablelm", read };

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    require_silu(config)?;
    if config.flag("qk_layernorm")?.unwrap_or(false) {
        return Err(config.refuse("qk_layernorm", "false, as norms of single heads are not implemented"));
    }
    let dimensions = Dimensions::read(config, None)?;
    let rope = Rope::read(config, rotated_columns(config, dimensions.head_dim, 0.25)?)?;
    let norm = (NormKind::Layer, config.positive("layer_norm_eps")?.unwrap_or(1e-5));
    let bias = config.flag("use_qkv_bias")?.unwrap_or(false);
    let parallel = config.flag("use_parallel_residual")?.unwrap_or(false);
    let block = block(&dimensions, norm, bias, parallel);
    Ok(decoder(family, dimensions, norm, rope, block))
}

/// The block. `parallel`: whether the MLP reads the norm that attention reads, instead of one behind it.
fn block(dimensions: &Dimensions, norm: (NormKind, f32), bias: bool, parallel: bool) -> Block {
    let (hidden, inner, head_dim) = (dimensions.hidden_size, dimensions.intermediate_size, dimensions.head_dim);
    let (heads, kv_heads) = (dimensions.num_attention_heads, dimensions.num_key_value_heads);
    let (queries, keys) = (dimensions.queries(), dimensions.keys());
    let (mut line, h) = Line::new("model.layers.{layer}.", hidden);
    let x = line.norm(h, "input_layernorm", norm);
    let [q, k, v] = line.linears(
        x,
        [("self_attn.q_proj", queries, bias), ("self_attn.k_proj", keys, bias), ("self_attn.v_proj", keys, bias)],
    );
    let (q, k) = (line.rope(q, 0, head_dim), line.rope(k, 0, head_dim));
    let mixed = line.attention(q, k, v, Attention { heads, kv_heads, head_dim, window: None });
    let o = line.linear(mixed, "self_attn.o_proj", hidden, false);
    let h = line.add(h, o);
    let x = if parallel { x } else { line.norm(h, "post_attention_layernorm", norm) };
    let [gate, up] = line.linears(x, [("mlp.gate_proj", inner, false), ("mlp.up_proj", inner, false)]);
    let gated = line.gate(Activation::Silu, gate, up);
    let down = line.linear(gated, "mlp.down_proj", hidden, false);
    let h = line.add(h, down);
    line.finish(h)
}
