//! StarCoder2: LayerNorm, biases everywhere, a MLP of two layers with GELU, and a sliding window. Equations and keys:
//! transformers, models/starcoder2.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, require_whole_heads};
use super::config::window;
use super::graph::{Activation, Attention, ModelConfig};
use super::parts::SelfAttention;
use super::{About, Family, Keys, decoder};
use crate::Result;

/// StarCoder2 3B, 7B and 15B.
pub(super) const STARCODER2: Family = Family {
    architecture: "Starcoder2ForCausalLM",
    model_type: "starcoder2",
    keys: Keys::Top,
    read,
    about: About {
        name: "StarCoder2",
        models: "StarCoder2",
        features: "LayerNorm, biases, a MLP of two layers, a sliding window",
        missing: "",
        fixtures: &["starcoder2"],
    },
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &Sizes { tied: true, ..Sizes::USUAL })?;
    require_whole_heads(config)?;
    config.only("mlp_type", "default")?;
    config.only("norm_type", "layer_norm")?;
    // The 7B and 15B files also have these keys of other families, which clients do not read.
    config.pass_over(&["activation_function", "layer_norm_epsilon", "rms_norm_eps"]);
    let rope = Rope::read(config, dimensions.head_dim)?;
    let norm = NormStyle::layer(config.positive("norm_epsilon")?.unwrap_or(1e-5));
    let act = activation(config, "hidden_act", Activation::GeluTanh)?;
    let bias = config.flag("use_bias")?.unwrap_or(true);
    let (hidden, inner, layers) = (dimensions.hidden_size, dimensions.intermediate_size, dimensions.num_hidden_layers);
    let width = config.count("sliding_window")?;
    let windows = window::by_kind(config, layers, width, |_| width.is_some())?;
    let blocks = blocks("model.layers.{layer}.", hidden, layers, |line, h, layer| {
        let attention = Attention { window: windows[layer], ..dimensions.attention() };
        let x = line.norm(h, "input_layernorm", norm);
        let o = line.self_attention(x, hidden, &SelfAttention { bias: [bias; 2], ..SelfAttention::new(attention) });
        let h = line.add(h, o);
        let x = line.norm(h, "post_attention_layernorm", norm);
        let down = line.plain_mlp(x, act, ["mlp.c_fc", "mlp.c_proj"], inner, bias);
        line.add(h, down)
    });
    Ok(decoder(family, &dimensions, norm, vec![rope], blocks))
}
