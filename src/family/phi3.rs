//! Phi-3, Phi-3.5 and Phi-4: the block of LLaMA with q, k and v from one linear layer, and gate and up from another.
//! Some sizes rotate a part of each head. Equations and keys: transformers, models/phi3.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults, rotated_columns};
use super::config::window;
use super::graph::{Activation, Attention, ModelConfig};
use super::parts::SelfAttention;
use super::{About, Family, Keys, decoder};
use crate::Result;

/// Phi-3 mini and medium, Phi-4 and Phi-4 mini.
pub(super) const PHI3: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    keys: Keys::Top,
    read,
    about: About {
        name: "Phi-3 and Phi-4",
        models: "Phi-3, Phi-3.5 mini, Phi-4 and Phi-4 mini",
        features: "fused qkv and gate_up, partial rotation, LongRoPE",
        missing: "",
        fixtures: &["phi3", "phi3-long", "phi3-longer"],
    },
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &Sizes::USUAL)?;
    let rotated = rotated_columns(config, dimensions.head_dim, 1.0)?;
    let rope = Rope::read_with(config, rotated, &RopeDefaults::PLAIN)?;
    // It matters with LongRoPE alone.
    config.pass_over(&["original_max_position_embeddings"]);
    // Keys of Phi-4 mini for its own code: full attention in every layer, and no interpolation of positions.
    config.only("full_attn_mod", 1)?;
    config.only("interpolate_factor", 1)?;
    let norm = NormStyle::rms(config.positive("rms_norm_eps")?.unwrap_or(1e-5));
    let act = activation(config, "hidden_act", Activation::Silu)?;
    let (hidden, layers) = (dimensions.hidden_size, dimensions.num_hidden_layers);
    let width = config.count("sliding_window")?;
    let windows = window::by_kind(config, layers, width, |_| width.is_some())?;
    let blocks = blocks("model.layers.{layer}.", hidden, layers, |line, h, layer| {
        let attention = Attention { window: windows[layer], ..dimensions.attention() };
        let x = line.norm(h, "input_layernorm", norm);
        let o = line.self_attention(x, hidden, &SelfAttention { fused: true, ..SelfAttention::new(attention) });
        let h = line.add(h, o);
        let x = line.norm(h, "post_attention_layernorm", norm);
        let down = line.fused_mlp(x, act, dimensions.intermediate_size);
        line.add(h, down)
    });
    Ok(decoder(family, &dimensions, norm, vec![rope], blocks))
}
