//! Command R and Command A: attention and MLP beside each other on one LayerNorm without bias, neighbours as rotary
//! pairs, and scaled logits. Command R7B and A add sliding windows; only the layers that have one rotate queries and
//! keys. Equations and keys: transformers, models/cohere and models/cohere2.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults, require_whole_heads};
use super::config::window::{self, Windows};
use super::graph::{Activation, Attention, ModelConfig};
use super::parts::{HeadNorms, SelfAttention, Turn};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// Command R and Command R+.
pub(super) const COHERE: Family = Family {
    architecture: "CohereForCausalLM",
    model_type: "cohere",
    keys: Keys::Top,
    read: |family, config| {
        let dimensions = Dimensions::read(config, &SIZES)?;
        let epsilon = config.positive("layer_norm_eps")?.unwrap_or(1e-5);
        let norms = match config.flag("use_qk_norm")?.unwrap_or(false) {
            true => HeadNorms::OwnGains(NormStyle::layer(epsilon).without_bias(), |side, [heads, head_dim]| {
                (vec![format!("self_attn.{side}_norm.weight")], vec![heads, head_dim])
            }),
            false => HeadNorms::None,
        };
        let layers = window::none(dimensions.num_hidden_layers);
        build(family, config, dimensions, Layers { windows: layers, rotates_all: true, norms, theta: 5e5 })
    },
    about: About {
        name: "Command R",
        models: "Command R and R+",
        features: "attention and MLP on one LayerNorm without bias, neighbouring rotary pairs, scaled logits, optional norms of heads",
        missing: "",
        fixtures: &["cohere", "cohere-qk"],
    },
};

/// Command R7B and Command A.
pub(super) const COHERE2: Family = Family {
    architecture: "Cohere2ForCausalLM",
    model_type: "cohere2",
    keys: Keys::Top,
    read: |family, config| {
        let dimensions = Dimensions::read(config, &SIZES)?;
        let pattern = config.count("sliding_window_pattern")?.unwrap_or(4);
        // What the releases say in other words.
        config.only("layer_switch", pattern)?;
        config.only("order_of_interleaved_layers", "local_attn_first")?;
        config.only("position_embedding_type", "rope_gptj")?;
        config.only("use_gated_activation", true)?;
        config.only("use_parallel_block", true)?;
        config.only("use_embedding_sharing", dimensions.tie_word_embeddings)?;
        // How other programs spread the embedding over devices.
        config.pass_over(&["use_parallel_embedding"]);
        let layers = dimensions.num_hidden_layers;
        let windows = window::by_kind(config, layers, Some(4096), |layer| !(layer + 1).is_multiple_of(pattern))?;
        let layers = Layers { windows, rotates_all: false, norms: HeadNorms::None, theta: 1e4 };
        build(family, config, dimensions, layers)
    },
    about: About {
        name: "Command A",
        models: "Command R7B and Command A",
        features: "as Command R, sliding windows by layer, rotation only there",
        missing: "",
        fixtures: &["cohere2"],
    },
};

const SIZES: Sizes = Sizes { tied: true, ..Sizes::USUAL };

/// What the two families do not share.
struct Layers {
    windows: Windows,
    /// Whether layers without a window rotate queries and keys, too.
    rotates_all: bool,
    norms: HeadNorms,
    /// Base of the angles where the file does not give it.
    theta: f64,
}

fn build(family: &Family, config: Fields<'_>, dimensions: Dimensions, layers: Layers) -> Result<ModelConfig> {
    require_whole_heads(config)?;
    let defaults = RopeDefaults { theta: Some(layers.theta), ..RopeDefaults::PLAIN };
    let rope = Rope::read_with(config, dimensions.head_dim, &defaults)?;
    let norm = NormStyle::layer(config.positive("layer_norm_eps")?.unwrap_or(1e-5)).without_bias();
    let act = activation(config, "hidden_act", Activation::Silu)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let logit_scale = config.positive("logit_scale")?.unwrap_or(0.0625);
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    let blocks = blocks("model.layers.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, layer| {
        let window = layers.windows[layer];
        let rotates = layers.rotates_all || window.is_some();
        let spec = SelfAttention {
            bias: [bias; 2],
            norms: layers.norms,
            rope: rotates.then(|| Turn::neighbours(0)),
            ..SelfAttention::new(Attention { window, ..dimensions.attention() })
        };
        let x = line.norm(h, "input_layernorm", norm);
        let o = line.self_attention(x, hidden, &spec);
        let h = line.add(h, o);
        let down = line.gated_mlp(x, act, inner, false);
        line.add(h, down)
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "model.norm", norm);
        let logits = line.linear(x, "lm_head", dimensions.vocab_size, false);
        line.scale(logits, logit_scale)
    });
    Ok(ModelConfig { head, ..decoder(family, &dimensions, norm, vec![rope], blocks) })
}
