//! Muse Glimmer: a norm before and behind each branch, norms of queries and keys without weights, a gate on the output
//! of attention, and bounded logits. Equations and keys: transformers, models/muse_glimmer.

use serde_json::Value as Json;

use super::build::{Line, NormStyle, blocks};
use super::config::activation::activation;
use super::config::dimensions::{Dimensions, Sizes};
use super::config::fields::Fields;
use super::config::rope::{Rope, require_whole_heads};
use super::config::window;
use super::gemma::{cap, sandwich};
use super::graph::{Activation, Attention, Gains, ModelConfig, Pairs, Value};
use super::{About, Family, Keys, decoder, head};
use crate::Result;

/// Muse Glimmer 30B with its vision tower.
pub(super) const MUSE_GLIMMER: Family = Family {
    architecture: "MuseGlimmerForConditionalGeneration",
    model_type: "muse_glimmer",
    keys: Keys::Text,
    read,
    about: About {
        name: "Muse Glimmer",
        models: "Muse Glimmer 30B",
        features: "a norm behind the embedding, sandwich norms, gated attention, bounded logits; the language model of a wrapper",
        missing: "",
        fixtures: &["muse_glimmer"],
    },
};

/// The numbers of Muse Glimmer's attention.
struct Details {
    attention: Attention,
    bias: bool,
    /// Of queries and keys, without a weight.
    norm: NormStyle,
    hidden: usize,
}

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let sizes = Sizes { head_dim: Some(128), ..Sizes::USUAL };
    let dimensions = Dimensions::read(config, &sizes)?;
    require_whole_heads(config)?;
    let rope = Rope::read(config, dimensions.head_dim)?;
    let (hidden, layers) = (dimensions.hidden_size, dimensions.num_hidden_layers);
    // Every fourth layer, counted from the last, sees all positions and does not rotate.
    let windows = window::by_kind(config, layers, Some(2048), |layer| !(layers - 1 - layer).is_multiple_of(4))?;
    let rotates = rotates(config, layers, rope.theta)?;
    let final_norm = NormStyle::rms(config.positive("rms_norm_eps")?.unwrap_or(1e-5));
    let bare = final_norm.with_gains(Gains::None);
    let before = final_norm.with_gains(Gains::PlusOne);
    let behind = NormStyle { epsilon: config.positive("post_norm_eps")?.unwrap_or(1e-8), ..before };
    let act = activation(config, "hidden_activation", Activation::Silu)?;
    let factor = config.positive("qk_scale_factor")?.unwrap_or(3.87);
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let blocks = blocks("model.layers.{layer}.", hidden, layers, |line, h, layer| {
        let h = if layer == 0 { line.norm(h, "embed_norm", bare) } else { h };
        let plain = dimensions.attention();
        let attention = Attention { window: windows[layer], scale: plain.scale * factor, ..plain };
        let details = Details { attention, bias, norm: bare, hidden };
        sandwich(
            line,
            h,
            [before, behind],
            |line, x| gated_attention(line, x, &details, rotates[layer]),
            |line, x| line.gated_mlp(x, act, dimensions.intermediate_size, false),
        )
    });
    let multiplier = config.positive("output_multiplier")?.unwrap_or(0.196_116_14);
    let logit_cap = cap(config, "final_logit_softcapping", Some(20.0))?;
    let head = head(hidden, |line, h| {
        let x = line.norm(h, "model.norm", final_norm);
        let logits = line.linear(x, "lm_head", dimensions.vocab_size, false);
        let logits = line.scale(logits, multiplier);
        line.softcap(logits, logit_cap)
    });
    Ok(ModelConfig { head, ..decoder(family, &dimensions, final_norm, vec![rope], blocks) })
}

/// Reads which layers rotate queries and keys: those with a base in `layer_rope_theta` that is not 0. All others must
/// have the base `theta`, as transformers uses one table.
fn rotates(config: Fields<'_>, layers: usize, theta: f64) -> Result<Vec<bool>> {
    let Some(list) = config.get("layer_rope_theta") else {
        return Ok((0..layers).map(|layer| !(layers - 1 - layer).is_multiple_of(4)).collect());
    };
    let rotates = |base: &Json| match base.as_f64() {
        Some(0.0) => Some(false),
        Some(base) if base == theta => Some(true),
        _ => None,
    };
    let rotates: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().map(rotates).collect());
    let rotates = rotates.filter(|rotates| rotates.len() == layers);
    rotates.ok_or_else(|| {
        config.refuse("layer_rope_theta", &format!("0 or rope_theta {theta} for each of the {layers} layers"))
    })
}

/// Attention on `x`, with the output of every column multiplied by σ(gate) before the last linear layer.
fn gated_attention(line: &mut Line, x: Value, details: &Details, rotates: bool) -> Value {
    let Details { attention, bias, norm, hidden } = *details;
    let (queries, keys, head) = (attention.queries(), attention.keys(), attention.head_dim);
    let [q, k, v, gate] = line.linears(
        x,
        [
            ("self_attn.q_proj", queries, bias),
            ("self_attn.k_proj", keys, bias),
            ("self_attn.v_proj", keys, bias),
            ("self_attn.gate_proj", queries, false),
        ],
    );
    let mut prepare = |x: Value| {
        let x = line.norm_per(x, "self_attn.qk_norm", norm, head);
        if rotates { line.rope(x, 0, head, Pairs::Halves) } else { x }
    };
    let (q, k) = (prepare(q), prepare(k));
    let mixed = line.attention(q, k, v, attention);
    let gated = line.gate(Activation::Sigmoid, gate, mixed);
    line.linear(gated, "self_attn.o_proj", hidden, bias)
}
