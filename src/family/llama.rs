//! LLaMA and the families that share its block: RMSNorm, rotary grouped-query attention, and an MLP gated by SiLU.
//!
//! Covers Llama 1 to 3, TinyLlama, SmolLM, SmolLM2, and Mistral with its sliding window. `qwen` builds its block here
//! as well.

use super::build::Line;
use super::config::dimensions::{Dimensions, require_silu};
use super::config::fields::Fields;
use super::config::rope::{Rope, require_whole_heads};
use super::config::window;
use super::graph::{Activation, Attention, Block, ModelConfig, NormKind};
use super::{Family, decoder};
use crate::Result;

/// Llama 1 to 3, TinyLlama, SmolLM and others that share the architecture.
pub(super) const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    read: |family, config| {
        let bias = config.flag("attention_bias")?.unwrap_or(false);
        let mlp_bias = config.flag("mlp_bias")?.unwrap_or(false);
        build(family, config, None, Details { qkv_bias: bias, o_bias: bias, mlp_bias, ..Details::default() })
    },
};

/// Mistral, with an optional sliding window.
pub(super) const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    read: |family, config| {
        build(family, config, None, Details { window: window::mistral(config)?, ..Details::default() })
    },
};

/// The differences between the families with this block.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Details {
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Whether each head of the queries and keys has an RMSNorm.
    pub head_norms: bool,
    pub window: Option<usize>,
}

/// Builds the model of `family` from its configuration. `head_dim`: the family's default where the file has no such
/// key; `None` means hidden_size / heads.
///
/// Errors: `Error::Input` if the configuration describes something that the block cannot express.
pub(super) fn build(
    family: &Family,
    config: Fields<'_>,
    head_dim: Option<usize>,
    details: Details,
) -> Result<ModelConfig> {
    require_silu(config)?;
    let dimensions = Dimensions::read(config, head_dim)?;
    require_whole_heads(config)?;
    let epsilon = config.positive("rms_norm_eps")?.unwrap_or(1e-6);
    let norm = (NormKind::Rms, epsilon);
    let rope = Rope::read(config, dimensions.head_dim)?;
    let block = block(&dimensions, norm, details);
    Ok(decoder(family, dimensions, norm, rope, block))
}

/// The decoder block, with the equations of LLaMA in order: attention, then the MLP, each with a residual connection.
fn block(dimensions: &Dimensions, norm: (NormKind, f32), details: Details) -> Block {
    let Details { qkv_bias, o_bias, mlp_bias, head_norms, window } = details;
    let (hidden, inner, head_dim) = (dimensions.hidden_size, dimensions.intermediate_size, dimensions.head_dim);
    let (queries, keys) = (dimensions.queries(), dimensions.keys());
    let attention =
        Attention { heads: dimensions.num_attention_heads, kv_heads: dimensions.num_key_value_heads, head_dim, window };
    let (mut line, h) = Line::new("model.layers.{layer}.", hidden);
    let x = line.norm(h, "input_layernorm", norm);
    let [mut q, mut k, v] = line.linears(
        x,
        [
            ("self_attn.q_proj", queries, qkv_bias),
            ("self_attn.k_proj", keys, qkv_bias),
            ("self_attn.v_proj", keys, qkv_bias),
        ],
    );
    if head_norms {
        q = line.norm_per(q, "self_attn.q_norm", norm, head_dim);
    }
    q = line.rope(q, 0, head_dim);
    if head_norms {
        k = line.norm_per(k, "self_attn.k_norm", norm, head_dim);
    }
    k = line.rope(k, 0, head_dim);
    let mixed = line.attention(q, k, v, attention);
    let o = line.linear(mixed, "self_attn.o_proj", hidden, o_bias);
    let h = line.add(h, o);
    let x = line.norm(h, "post_attention_layernorm", norm);
    let [gate, up] = line.linears(x, [("mlp.gate_proj", inner, mlp_bias), ("mlp.up_proj", inner, mlp_bias)]);
    let gated = line.gate(Activation::Silu, gate, up);
    let down = line.linear(gated, "mlp.down_proj", hidden, mlp_bias);
    let h = line.add(h, down);
    line.finish(h)
}
