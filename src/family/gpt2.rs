//! GPT-2: learned positions, LayerNorm, and linear layers that are stored transposed. Equations and keys: transformers,
//! models/gpt2.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::graph::{Activation, Attention, ModelConfig};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// GPT-2, DistilGPT-2 and others of the architecture.
pub(super) const GPT2: Family = Family {
    architecture: "GPT2LMHeadModel",
    model_type: "gpt2",
    keys: Keys::Top,
    read,
    about: About {
        name: "GPT-2",
        models: "GPT-2 and others of the architecture",
        features: "learned positions, transposed weights",
        missing: "",
        fixtures: &["gpt2"],
    },
};

/// The names that GPT-2 and GPT-J use.
pub(super) const SIZES: Sizes = Sizes {
    hidden: &["n_embd", "hidden_size"],
    inner: &["n_inner"],
    inner_factor: Some(4),
    layers: &["n_layer", "num_hidden_layers"],
    heads: &["n_head", "num_attention_heads"],
    kv_heads: &[],
    positions: &["n_positions", "max_position_embeddings"],
    tied: true,
    ..Sizes::USUAL
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    if config.flag("add_cross_attention")?.unwrap_or(false) {
        return Err(config.refuse("add_cross_attention", "false, for a model without an encoder"));
    }
    let dimensions = Dimensions::read(config, &SIZES)?;
    let norm = NormStyle::layer(config.positive("layer_norm_epsilon")?.unwrap_or(1e-5));
    let act = activation(config, "activation_function", Activation::GeluTanh)?;
    let scaled = config.flag("scale_attn_weights")?.unwrap_or(true);
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false);
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    let blocks = blocks("transformer.h.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, layer| {
        let h = match layer {
            0 => {
                line.outside(|line| line.positions(h, "transformer.wpe.weight", dimensions.max_position_embeddings, 0))
            }
            _ => h,
        };
        let plain = dimensions.attention();
        let scale = if scaled { plain.scale } else { 1.0 };
        let scale = if by_layer { scale / (layer + 1) as f32 } else { scale };
        let x = line.norm(h, "ln_1", norm);
        let qkv = line.transposed_linear(x, "attn.c_attn", 3 * plain.queries(), true);
        let [q, k, v] = line.split(qkv, [plain.queries(); 3]);
        let mixed = line.attention(q, k, v, Attention { scale, ..plain });
        let o = line.transposed_linear(mixed, "attn.c_proj", hidden, true);
        let h = line.add(h, o);
        let x = line.norm(h, "ln_2", norm);
        let up = line.transposed_linear(x, "mlp.c_fc", inner, true);
        let active = line.activate(act, up);
        let down = line.transposed_linear(active, "mlp.c_proj", hidden, true);
        line.add(h, down)
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "transformer.ln_f", norm);
        line.linear(x, "lm_head", dimensions.vocab_size, false)
    });
    let embedding = "transformer.wte.weight".to_owned();
    Ok(ModelConfig { embedding, head, ..decoder(family, &dimensions, norm, Vec::new(), blocks) })
}
