//! GLM-4: a norm before and behind each branch, gate and up from one linear layer, and half of each head turned in
//! pairs of neighbours. Equations and keys: transformers, models/glm4.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, rotated_columns};
use super::graph::{Activation, ModelConfig};
use super::parts::{SelfAttention, Turn};
use super::{About, Family, Keys, decoder};
use crate::Result;

/// GLM-4 9B and 32B of April 2025.
pub(super) const GLM4: Family = Family {
    architecture: "Glm4ForCausalLM",
    model_type: "glm4",
    keys: Keys::Top,
    read,
    about: About {
        name: "GLM-4",
        models: "GLM-4 9B and 32B (0414)",
        features: "four norms, fused gate_up, neighbouring rotary pairs in half of each head",
        missing: "",
        fixtures: &["glm4"],
    },
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &Sizes { head_dim: Some(128), ..Sizes::USUAL })?;
    let rope = Rope::read(config, rotated_columns(config, dimensions.head_dim, 0.5)?)?;
    let norm = NormStyle::rms(config.positive("rms_norm_eps")?.unwrap_or(1.5625e-7));
    let act = activation(config, "hidden_act", Activation::Silu)?;
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let spec = SelfAttention {
        bias: [bias, false],
        rope: Some(Turn::neighbours(0)),
        ..SelfAttention::new(dimensions.attention())
    };
    let (hidden, layers) = (dimensions.hidden_size, dimensions.num_hidden_layers);
    let blocks = blocks("model.layers.{layer}.", hidden, layers, |line, h, _| {
        let x = line.norm(h, "input_layernorm", norm);
        let branch = line.self_attention(x, hidden, &spec);
        let branch = line.norm(branch, "post_self_attn_layernorm", norm);
        let h = line.add(h, branch);
        let x = line.norm(h, "post_attention_layernorm", norm);
        let branch = line.fused_mlp(x, act, dimensions.intermediate_size);
        let branch = line.norm(branch, "post_mlp_layernorm", norm);
        line.add(h, branch)
    });
    Ok(decoder(family, &dimensions, norm, vec![rope], blocks))
}
