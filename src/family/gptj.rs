//! GPT-J: attention and MLP beside each other on one norm, neighbours as rotary pairs in the first columns of a head, and
//! an output matrix with a bias. Equations and keys: transformers, models/gptj.

use super::build::{NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeScaling};
use super::gpt2;
use super::graph::{Activation, ModelConfig, Pairs};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// GPT-J 6B.
pub(super) const GPTJ: Family = Family {
    architecture: "GPTJForCausalLM",
    model_type: "gptj",
    keys: Keys::Top,
    read,
    about: About {
        name: "GPT-J",
        models: "GPT-J 6B",
        features: "attention and MLP on one norm, neighbouring rotary pairs, a bias on the logits",
        missing: "",
        fixtures: &["gptj"],
    },
};

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &Sizes { tied: false, ..gpt2::SIZES })?;
    config.only("rotary", true)?;
    let rotated = config.count("rotary_dim")?.unwrap_or(64);
    if rotated > dimensions.head_dim || !rotated.is_multiple_of(2) {
        return Err(config.refuse("rotary_dim", "an even number of the columns of a head"));
    }
    let rope = Rope { rotated, theta: 10_000.0, scaling: RopeScaling::None, growth: None };
    let norm = NormStyle::layer(config.positive("layer_norm_epsilon")?.unwrap_or(1e-5));
    let act = activation(config, "activation_function", Activation::GeluTanh)?;
    let (hidden, inner, head_dim) = (dimensions.hidden_size, dimensions.intermediate_size, dimensions.head_dim);
    let paths = ["attn.q_proj", "attn.k_proj", "attn.v_proj"];
    let blocks = blocks("transformer.h.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, _| {
        let x = line.norm(h, "ln_1", norm);
        let [q, k, v] = line.linears(x, paths.map(|path| (path, dimensions.attention().queries(), false)));
        let (q, k) = (line.rope(q, 0, head_dim, Pairs::Neighbours), line.rope(k, 0, head_dim, Pairs::Neighbours));
        let mixed = line.attention(q, k, v, dimensions.attention());
        let o = line.linear(mixed, "attn.out_proj", hidden, false);
        let h = line.add(h, o);
        let down = line.plain_mlp(x, act, ["mlp.fc_in", "mlp.fc_out"], inner, true);
        line.add(h, down)
    });
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "transformer.ln_f", norm);
        line.linear(x, "lm_head", dimensions.vocab_size, true)
    });
    let embedding = "transformer.wte.weight".to_owned();
    Ok(ModelConfig { embedding, head, ..decoder(family, &dimensions, norm, vec![rope], blocks) })
}
