//! StableLM: LayerNorm, rotary embedding of a quarter of each head, a MLP gated by SiLU, and in some sizes attention and MLP
//! beside each other on one norm. Equations and keys: transformers, models/stablelm.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, rotated_columns};
use super::graph::{Activation, ModelConfig};
use super::parts::{HeadNorms, SelfAttention};
use super::{About, Family, Keys, decoder};
use crate::Result;

/// StableLM 3B and StableLM 2.
pub(super) const STABLELM: Family = Family {
    architecture: "StableLmForCausalLM",
    model_type: "stablelm",
    keys: Keys::Top,
    read,
    about: About {
        name: "StableLM",
        models: "StableLM 3B and StableLM 2",
        features: "LayerNorm, partial rotation, optional norms of single heads",
        missing: "",
        fixtures: &["stablelm", "stablelm-parallel", "stablelm-heads"],
    },
};

/// Greatest number of query heads in all layers together if each has a norm. The names of more would fill the memory.
const MOST_HEAD_NORMS: usize = 1 << 15;

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let act = activation(config, "hidden_act", Activation::Silu)?;
    let dimensions = Dimensions::read(config, &Sizes::USUAL)?;
    let rope = Rope::read(config, rotated_columns(config, dimensions.head_dim, 0.25)?)?;
    let norm = NormStyle::layer(config.positive("layer_norm_eps")?.unwrap_or(1e-5));
    // It speaks of the norms of heads, which have no bias.
    config.only("use_norm_bias", false)?;
    let norms = match config.flag("qk_layernorm")?.unwrap_or(false) {
        true if dimensions.num_hidden_layers * dimensions.num_attention_heads > MOST_HEAD_NORMS => {
            let expected = format!("false, or at most {MOST_HEAD_NORMS} heads in all layers together");
            return Err(config.refuse("qk_layernorm", &expected));
        }
        true => HeadNorms::OwnGains(norm.without_bias(), |side, [heads, head_dim]| {
            let part = |head| format!("self_attn.{side}_layernorm.norms.{head}.weight");
            ((0..heads).map(part).collect(), vec![head_dim])
        }),
        false => HeadNorms::None,
    };
    let bias = [config.flag("use_qkv_bias")?.unwrap_or(false), false];
    // Whether the MLP reads the norm that attention reads, instead of one behind it.
    let parallel = config.flag("use_parallel_residual")?.unwrap_or(false);
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    let layers = dimensions.num_hidden_layers;
    let blocks = blocks("model.layers.{layer}.", hidden, layers, |line, h, _| {
        let x = line.norm(h, "input_layernorm", norm);
        let spec = SelfAttention { bias, norms, ..SelfAttention::new(dimensions.attention()) };
        let o = line.self_attention(x, hidden, &spec);
        let h = line.add(h, o);
        let x = if parallel { x } else { line.norm(h, "post_attention_layernorm", norm) };
        let down = line.gated_mlp(x, act, inner, false);
        line.add(h, down)
    });
    Ok(decoder(family, &dimensions, norm, vec![rope], blocks))
}
