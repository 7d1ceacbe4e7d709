//! LLaMA and the families that share its block: RMSNorm, rotary grouped-query attention, and an MLP gated by SiLU.
//!
//! Covers Llama 1 to 3, TinyLlama, SmolLM, SmolLM2, and Mistral with its sliding window. Other files change details of
//! this block.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults, require_whole_heads};
use super::config::window::{self, Windows};
use super::graph::{Activation, Attention, ModelConfig};
use super::parts::SelfAttention;
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// Llama 1 to 3, TinyLlama, SmolLM and others that share the architecture.
pub(super) const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    keys: Keys::Top,
    read: |family, config| Ok(Details::read(config, Defaults::LLAMA)?.build(family)),
    about: About {
        name: "Llama",
        models: "Llama 1 to 3.3, TinyLlama, SmolLM, SmolLM2 and others of the architecture",
        features: "linear, llama3, YaRN and LongRoPE scaling, optional biases",
        missing: "",
        fixtures: &[
            "llama",
            "llama-scaled",
            "llama-linear",
            "llama-yarn",
            "llama-yarn-mscale",
            "fp8-block",
            "fp8-tensor",
            "mxfp4",
        ],
    },
};

/// Mistral, with an optional sliding window.
pub(super) const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    keys: Keys::Top,
    read: |family, config| {
        let details = Details::read(config, Defaults::NO_BIAS)?;
        let windows = window::mistral(config, details.windows.len())?;
        Ok(Details { windows, ..details }.build(family))
    },
    about: About {
        name: "Mistral",
        models: "Mistral 7B, Nemo and Small",
        features: "a sliding window",
        missing: "",
        fixtures: &["mistral"],
    },
};

/// What a family takes where its `config.json` says nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub sizes: Sizes,
    pub epsilon: f32,
    pub activation: Activation,
    /// Whether q, k, v and the output have biases. `None`: the family has no such key and no biases.
    pub attention_bias: Option<bool>,
    /// Whether the MLP has biases. `None`: the family has no such key and no biases.
    pub mlp_bias: Option<bool>,
    /// `None`: the family reads its tables of angles itself.
    pub rope: Option<RopeDefaults>,
}

impl Defaults {
    pub const LLAMA: Self = Self {
        sizes: Sizes::USUAL,
        epsilon: 1e-6,
        activation: Activation::Silu,
        attention_bias: Some(false),
        mlp_bias: Some(false),
        rope: Some(RopeDefaults::PLAIN),
    };

    /// The defaults of a family without keys for biases.
    pub const NO_BIAS: Self = Self { attention_bias: None, mlp_bias: None, ..Self::LLAMA };

    /// The defaults of LLaMA with another base of the rotary angles.
    pub const fn with_theta(theta: f64) -> Self {
        Self { rope: Some(RopeDefaults { theta: Some(theta), ..RopeDefaults::PLAIN }), ..Self::LLAMA }
    }

    /// These defaults with another width of heads.
    pub const fn with_head_dim(self, head_dim: usize) -> Self {
        Self { sizes: Sizes { head_dim: Some(head_dim), ..self.sizes }, ..self }
    }

    /// These defaults for a family that ties the output matrix to the embedding.
    pub const fn tied(self) -> Self {
        Self { sizes: Sizes { tied: true, ..self.sizes }, ..self }
    }
}

/// The parts of the block in which families differ.
#[derive(Debug, Clone)]
pub(super) struct Details {
    pub dimensions: Dimensions,
    pub norm: NormStyle,
    pub ropes: Vec<Rope>,
    /// Self-attention of every layer. Its window is that of [`Details::windows`].
    pub attention: SelfAttention,
    pub windows: Windows,
    /// For each layer, whether queries and keys are rotated.
    pub rotates: Vec<bool>,
    pub activation: Activation,
    /// Whether the MLP has a gate.
    pub gated: bool,
    pub mlp_bias: bool,
    pub multipliers: Multipliers,
}

/// Numbers by which a model multiplies some of its values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Multipliers {
    /// Of the embedding.
    pub embedding: f32,
    /// Of each branch before it is added to the residual stream.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
}

impl Details {
    /// The block of LLaMA with the sizes, ε, biases, activation and angles of `config`.
    ///
    /// Errors: `Error::Input` if the configuration describes something that the block cannot express.
    pub fn read(config: Fields<'_>, defaults: Defaults) -> Result<Self> {
        let dimensions = Dimensions::read(config, &defaults.sizes)?;
        let mut ropes = Vec::new();
        if let Some(defaults) = &defaults.rope {
            require_whole_heads(config)?;
            ropes.push(Rope::read_with(config, dimensions.head_dim, defaults)?);
        }
        let flag = |key: &str, default: Option<bool>| match default {
            Some(default) => Ok(config.flag(key)?.unwrap_or(default)),
            None => Ok(false),
        };
        let bias = flag("attention_bias", defaults.attention_bias)?;
        let layers = dimensions.num_hidden_layers;
        Ok(Self {
            norm: NormStyle::rms(config.positive("rms_norm_eps")?.unwrap_or(defaults.epsilon)),
            ropes,
            attention: SelfAttention { bias: [bias; 2], ..SelfAttention::new(dimensions.attention()) },
            windows: window::none(layers),
            rotates: vec![true; layers],
            activation: activation(config, "hidden_act", defaults.activation)?,
            gated: true,
            mlp_bias: flag("mlp_bias", defaults.mlp_bias)?,
            multipliers: Multipliers { embedding: 1.0, residual: 1.0, logits: 1.0 },
            dimensions,
        })
    }

    /// Builds the model of `family`.
    pub fn build(self, family: &Family) -> ModelConfig {
        let Self { dimensions, norm, multipliers, .. } = &self;
        let hidden = dimensions.hidden_size;
        let blocks = blocks("model.layers.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, layer| {
            let h = if layer == 0 { line.scale(h, multipliers.embedding) } else { h };
            let x = line.norm(h, "input_layernorm", *norm);
            let o = line.self_attention(x, hidden, &self.attention_of(layer));
            let o = line.scale(o, multipliers.residual);
            let h = line.add(h, o);
            let x = line.norm(h, "post_attention_layernorm", *norm);
            let (act, inner, bias) = (self.activation, dimensions.intermediate_size, self.mlp_bias);
            let down = match self.gated {
                true => line.gated_mlp(x, act, inner, bias),
                false => line.plain_mlp(x, act, ["mlp.up_proj", "mlp.down_proj"], inner, bias),
            };
            let down = line.scale(down, multipliers.residual);
            line.add(h, down)
        });
        let head = head(hidden, |line, h| {
            let x = line.norm(h, "model.norm", *norm);
            let logits = line.linear(x, "lm_head", dimensions.vocab_size, false);
            line.scale(logits, multipliers.logits)
        });
        ModelConfig { head, ..decoder(family, dimensions, *norm, self.ropes.clone(), blocks) }
    }

    /// Self-attention of layer `layer`.
    fn attention_of(&self, layer: usize) -> SelfAttention {
        let attention = Attention { window: self.windows[layer], ..self.attention.attention };
        let rope = self.attention.rope.filter(|_| self.rotates[layer]);
        SelfAttention { attention, rope, ..self.attention }
    }
}
