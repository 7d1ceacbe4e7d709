//! OPT: LayerNorm, learned positions, biases everywhere, and a MLP of two layers with ReLU. The 350M size has norms
//! behind the branches, and a narrower embedding with a linear layer on each side of the blocks. Equations and keys:
//! transformers, models/opt.

use super::build::{Line, NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, MOST_COLUMNS, Sizes, bounded};
use super::config::fields::Fields;
use super::graph::{Activation, Gains, ModelConfig, Value};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// OPT 125M to 66B.
pub(super) const OPT: Family = Family {
    architecture: "OPTForCausalLM",
    model_type: "opt",
    keys: Keys::Top,
    read,
    about: About {
        name: "OPT",
        models: "OPT 125M to 66B, 350M included",
        features: "learned positions, ReLU, norms behind the branches and a projected embedding in 350M",
        missing: "",
        fixtures: &["opt", "opt-350m"],
    },
};

const SIZES: Sizes = Sizes { inner: &["ffn_dim"], kv_heads: &[], tied: true, ..Sizes::USUAL };

/// Rows of the table of positions before that of the first position.
const OFFSET: usize = 2;

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let dimensions = Dimensions::read(config, &SIZES)?;
    let outer = match config.count("word_embed_proj_dim")? {
        Some(outer) => bounded(config, "word_embed_proj_dim", outer, MOST_COLUMNS)?,
        None => dimensions.hidden_size,
    };
    let act = activation(config, "activation_function", Activation::Relu)?;
    let before = config.flag("do_layer_norm_before")?.unwrap_or(true);
    let removed = config.flag("_remove_final_layer_norm")?.unwrap_or(false);
    let bias = config.flag("enable_bias")?.unwrap_or(true);
    let norm = match config.flag("layer_norm_elementwise_affine")?.unwrap_or(true) {
        true => NormStyle::layer(1e-5),
        false => NormStyle::layer(1e-5).with_gains(Gains::None).without_bias(),
    };
    let (hidden, inner, layers) = (dimensions.hidden_size, dimensions.intermediate_size, dimensions.num_hidden_layers);
    let final_norm = (before && !removed).then_some("model.decoder.final_layer_norm");
    let blocks = blocks("model.decoder.layers.{layer}.", outer, layers, |line, h, layer| {
        let h = if layer == 0 { line.outside(|line| enter(line, h, &dimensions)) } else { h };
        let x = if before { line.norm(h, "self_attn_layer_norm", norm) } else { h };
        let o = attention(line, x, &dimensions, bias);
        let h = line.add(h, o);
        let h = if before { h } else { line.norm(h, "self_attn_layer_norm", norm) };
        let x = if before { line.norm(h, "final_layer_norm", norm) } else { h };
        let down = line.plain_mlp(x, act, ["fc1", "fc2"], inner, bias);
        let h = line.add(h, down);
        let h = if before { h } else { line.norm(h, "final_layer_norm", norm) };
        if layer + 1 < layers || outer == hidden {
            return h;
        }
        line.outside(|line| {
            let h = final_norm.map_or(h, |path| line.norm(h, path, norm));
            line.float_linear(h, "model.decoder.project_out", outer, false)
        })
    });
    let head = head(outer, |line, h| {
        let x = final_norm.filter(|_| outer == hidden).map_or(h, |path| line.norm(h, path, norm));
        line.linear(x, "lm_head", dimensions.vocab_size, false)
    });
    let embedding = "model.decoder.embed_tokens.weight".to_owned();
    let model = decoder(family, &dimensions, norm, Vec::new(), blocks);
    Ok(ModelConfig { hidden_size: outer, embedding, head, ..model })
}

/// From the embedding to the residual stream: the projection of a narrower embedding, and the positions.
fn enter(line: &mut Line, h: Value, dimensions: &Dimensions) -> Value {
    let hidden = dimensions.hidden_size;
    let narrow = line.width(h) != hidden;
    let h = if narrow { line.float_linear(h, "model.decoder.project_in", hidden, false) } else { h };
    let rows = dimensions.max_position_embeddings + OFFSET;
    line.positions(h, "model.decoder.embed_positions.weight", rows, OFFSET)
}

fn attention(line: &mut Line, x: Value, dimensions: &Dimensions, bias: bool) -> Value {
    let attention = dimensions.attention();
    let paths = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    let [q, k, v] = line.linears(x, paths.map(|path| (path, attention.queries(), bias)));
    let mixed = line.attention(q, k, v, attention);
    line.linear(mixed, "self_attn.out_proj", dimensions.hidden_size, bias)
}
