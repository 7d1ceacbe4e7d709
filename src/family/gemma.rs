//! Gemma 1 to 3: gains 1 + w, a scaled embedding and a MLP gated by GELU. From Gemma 2 on, each branch has a norm on
//! both sides. Gemma 2 bounds scores and logits; Gemma 3 has norms of single heads and two tables of angles. Equations
//! and keys: transformers, models/gemma, gemma2 and gemma3.

use half::{bf16, f16};

use super::build::{Line, NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults};
use super::config::window::{self, Windows};
use super::graph::{Activation, Attention, Gains, ModelConfig, Value};
use super::llama::{Defaults, Details, Multipliers};
use super::parts::{HeadNorms, SelfAttention, Turn};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// Gemma 1: the block of LLaMA with other gains.
pub(super) const GEMMA: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    keys: Keys::Top,
    read: |family, config| {
        let defaults = Defaults { activation: Activation::GeluTanh, mlp_bias: None, ..Defaults::LLAMA };
        let details = Details::read(config, defaults.with_head_dim(256).tied())?;
        // The first releases name exact GELU and mean the approximation. Others name it under another key, too.
        config.pass_over(&["hidden_activation"]);
        let activation = match details.activation {
            Activation::Gelu => Activation::GeluTanh,
            other => other,
        };
        let norm = details.norm.with_gains(Gains::PlusOne);
        let embedding = embedding_scale(config, details.dimensions.hidden_size)?;
        let multipliers = Multipliers { embedding, ..details.multipliers };
        Ok(Details { norm, activation, multipliers, ..details }.build(family))
    },
    about: About {
        name: "Gemma",
        models: "Gemma 1",
        features: "gains 1 + w, a scaled embedding, GELU",
        missing: "",
        fixtures: &["gemma"],
    },
};

/// Gemma 2: alternating windows, bounded scores and logits.
pub(super) const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    keys: Keys::Top,
    read: |family, config| {
        let attn_cap = cap(config, "attn_logit_softcapping", Some(50.0))?;
        let logit_cap = cap(config, "final_logit_softcapping", Some(30.0))?;
        let gemma = Sandwich::read(config, &SIZES, [attn_cap, logit_cap])?;
        let layers = gemma.dimensions.num_hidden_layers;
        let windows = window::by_kind(config, layers, Some(4096), |layer| layer.is_multiple_of(2))?;
        // Another name of the same number.
        config.only("sliding_window_size", config.count("sliding_window")?.unwrap_or(4096))?;
        let ropes = vec![Rope::read(config, gemma.dimensions.head_dim)?];
        Ok(gemma.build(family, HeadNorms::None, &windows, ropes))
    },
    about: About {
        name: "Gemma 2",
        models: "Gemma 2",
        features: "sandwich norms, bounded scores and logits, alternating windows",
        missing: "",
        fixtures: &["gemma2"],
    },
};

/// Gemma 3, the language model alone: 270M and 1B.
pub(super) const GEMMA3_TEXT: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    keys: Keys::Top,
    read: read_gemma3,
    about: About {
        name: "Gemma 3",
        models: "Gemma 3 270M and 1B",
        features: "sandwich norms, norms of query and key heads, two tables of angles, sliding windows by layer",
        missing: "",
        fixtures: &["gemma3"],
    },
};

/// Gemma 3 with its vision tower: 4B, 12B and 27B.
pub(super) const GEMMA3: Family = Family {
    architecture: "Gemma3ForConditionalGeneration",
    model_type: "gemma3",
    keys: Keys::Text,
    read: read_gemma3,
    about: About {
        name: "Gemma 3",
        models: "Gemma 3 4B, 12B and 27B",
        features: "as above; the language model of a wrapper",
        missing: "",
        fixtures: &["gemma3-wrapper"],
    },
};

fn read_gemma3(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    causal(config)?;
    // transformers ignores a bound of the scores here.
    if config.get("attn_logit_softcapping").is_some() {
        return Err(config.refuse("attn_logit_softcapping", "null, as in every release"));
    }
    // The files of 4B and 12B leave out what transformers has as its defaults.
    let sizes =
        Sizes { default_heads: Some([8, 4]), most_positions: Some(131_072), vocabulary: Some(262_208), ..SIZES };
    let gemma = Sandwich::read(config, &sizes, [None, cap(config, "final_logit_softcapping", None)?])?;
    let layers = gemma.dimensions.num_hidden_layers;
    let pattern = config.count("sliding_window_pattern")?.unwrap_or(6);
    let windows = window::by_kind(config, layers, Some(4096), |layer| !(layer + 1).is_multiple_of(pattern))?;
    let local = RopeDefaults { theta_key: Some("rope_local_base_freq"), scaling_key: None, ..RopeDefaults::PLAIN };
    let full = RopeDefaults { theta: Some(1e6), ..RopeDefaults::PLAIN };
    let head_dim = gemma.dimensions.head_dim;
    let ropes = vec![
        Rope::read_kind(config, "full_attention", head_dim, &full)?,
        Rope::read_kind(config, "sliding_attention", head_dim, &local)?,
    ];
    Ok(gemma.build(family, HeadNorms::PerHead(gemma.norm), &windows, ropes))
}

/// Refuses a model whose tokens see later ones. Errors: `Error::Input`.
pub(super) fn causal(config: Fields<'_>) -> Result<()> {
    match config.get("use_bidirectional_attention") {
        None => Ok(()),
        // The words of Gemma 4 for attention that runs both ways within an image.
        Some(value) if value == false || value == "vision" => Ok(()),
        Some(_) => Err(config.refuse("use_bidirectional_attention", "false, for a model that generates text")),
    }
}

/// Reads a bound of scores or logits. `default`: the bound if the key is absent. A null means that there is none.
pub(super) fn cap(config: Fields<'_>, key: &str, default: Option<f32>) -> Result<Option<f32>> {
    match config.object.contains_key(key) {
        true => config.positive(key),
        false => Ok(default),
    }
}

/// The factor of the embedding: √`hidden`, rounded to the type of the weights that `config` names, as clients round it.
pub(super) fn embedding_scale(config: Fields<'_>, hidden: usize) -> Result<f32> {
    let scale = (hidden as f64).sqrt() as f32;
    let dtype = match config.text("dtype")? {
        Some(dtype) => Some(dtype),
        None => config.text("torch_dtype")?,
    };
    match dtype {
        None | Some("float32") => Ok(scale),
        Some("bfloat16") => Ok(bf16::from_f32(scale).to_f32()),
        Some("float16") => Ok(f16::from_f32(scale).to_f32()),
        Some(_) => {
            let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
            Err(config.refuse(key, "\"float32\", \"float16\" or \"bfloat16\""))
        }
    }
}

/// The sizes of Gemma 2 and 3.
const SIZES: Sizes = Sizes { head_dim: Some(256), tied: true, ..Sizes::USUAL };

/// The parts of Gemma 2 and 3: blocks with a norm before and behind each branch.
struct Sandwich {
    dimensions: Dimensions,
    norm: NormStyle,
    attention: Attention,
    bias: bool,
    activation: Activation,
    embedding: f32,
    logit_cap: Option<f32>,
}

impl Sandwich {
    /// Reads what Gemma 2 and 3 have in common. The bounds are those of the scores and of the logits.
    fn read(config: Fields<'_>, sizes: &Sizes, [softcap, logit_cap]: [Option<f32>; 2]) -> Result<Self> {
        let dimensions = Dimensions::read(config, sizes)?;
        // Older files have this key as well.
        config.pass_over(&["hidden_act"]);
        let scale = 1.0 / config.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
        Ok(Self {
            norm: NormStyle::rms(config.positive("rms_norm_eps")?.unwrap_or(1e-6)).with_gains(Gains::PlusOne),
            attention: Attention { scale, softcap, ..dimensions.attention() },
            bias: config.flag("attention_bias")?.unwrap_or(false),
            activation: activation(config, "hidden_activation", Activation::GeluTanh)?,
            embedding: embedding_scale(config, dimensions.hidden_size)?,
            logit_cap,
            dimensions,
        })
    }

    /// Builds the model of `family`. `ropes`: one table of angles, or one for layers without and one for layers with a
    /// window.
    fn build(&self, family: &Family, norms: HeadNorms, windows: &Windows, ropes: Vec<Rope>) -> ModelConfig {
        let Self { dimensions, norm, .. } = self;
        let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
        let blocks = blocks("model.layers.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, layer| {
            let h = if layer == 0 { line.scale(h, self.embedding) } else { h };
            let window = windows[layer];
            let table = if window.is_some() { ropes.len() - 1 } else { 0 };
            let spec = SelfAttention {
                bias: [self.bias; 2],
                norms,
                rope: Some(Turn::halves(table)),
                ..SelfAttention::new(Attention { window, ..self.attention })
            };
            sandwich(
                line,
                h,
                [*norm; 2],
                |line, x| line.self_attention(x, hidden, &spec),
                |line, x| line.gated_mlp(x, self.activation, inner, false),
            )
        });
        ModelConfig { head: self.head(), ..decoder(family, dimensions, *norm, ropes, blocks) }
    }

    fn head(&self) -> std::sync::Arc<super::Block> {
        head(self.dimensions.hidden_size, |line, h| {
            let x = line.norm(h, "model.norm", self.norm);
            let logits = line.linear(x, "lm_head", self.dimensions.vocab_size, false);
            line.softcap(logits, self.logit_cap)
        })
    }
}

/// A block with a norm before and a norm behind each of its two branches. Returns the residual stream after it.
pub(super) fn sandwich(
    line: &mut Line,
    h: Value,
    [before, behind]: [NormStyle; 2],
    attention: impl FnOnce(&mut Line, Value) -> Value,
    mlp: impl FnOnce(&mut Line, Value) -> Value,
) -> Value {
    let x = line.norm(h, "input_layernorm", before);
    let branch = attention(line, x);
    let branch = line.norm(branch, "post_attention_layernorm", behind);
    let h = line.add(h, branch);
    let x = line.norm(h, "pre_feedforward_layernorm", before);
    let branch = mlp(line, x);
    let branch = line.norm(branch, "post_feedforward_layernorm", behind);
    line.add(h, branch)
}
