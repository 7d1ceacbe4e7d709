//! OLMo 2 and OLMo 3: norms behind the branches instead of before them, and norms of the queries and keys over all
//! heads together. OLMo 3 adds sliding windows. Equations and keys: transformers, models/olmo2 and models/olmo3.

use super::build::blocks;
use super::config::fields::Fields;
use super::config::rope::{Rope, RopeDefaults};
use super::config::window;
use super::graph::{Attention, ModelConfig};
use super::llama::{Defaults, Details};
use super::parts::{HeadNorms, SelfAttention, Turn};
use super::{About, Family, Keys, decoder};
use crate::Result;

/// OLMo 2.
pub(super) const OLMO2: Family = Family {
    architecture: "Olmo2ForCausalLM",
    model_type: "olmo2",
    keys: Keys::Top,
    read: |family, config| {
        let details = Details::read(config, Defaults { epsilon: 1e-5, mlp_bias: None, ..Defaults::LLAMA })?;
        Ok(build(family, &details))
    },
    about: About {
        name: "OLMo 2",
        models: "OLMo 2",
        features: "norms behind the branches, norms of q and k over all heads",
        missing: "",
        fixtures: &["olmo2"],
    },
};

/// OLMo 3, with windows in three of four layers.
pub(super) const OLMO3: Family = Family {
    architecture: "Olmo3ForCausalLM",
    model_type: "olmo3",
    keys: Keys::Top,
    read: read_olmo3,
    about: About {
        name: "OLMo 3",
        models: "OLMo 3",
        features: "as OLMo 2, sliding windows by layer, a table of angles for each kind of layer",
        missing: "",
        fixtures: &["olmo3"],
    },
};

fn read_olmo3(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    let details = Details::read(config, Defaults { epsilon: 1e-5, mlp_bias: None, rope: None, ..Defaults::LLAMA })?;
    let layers = details.windows.len();
    let windows = window::by_kind(config, layers, Some(4096), |layer| !(layer + 1).is_multiple_of(4))?;
    // The older keys scale the angles of the layers without a window alone.
    let full = RopeDefaults { theta: Some(5e5), ..RopeDefaults::PLAIN };
    let sliding = RopeDefaults { scaling_key: None, ..full };
    let head_dim = details.dimensions.head_dim;
    let ropes = vec![
        Rope::read_kind(config, "full_attention", head_dim, &full)?,
        Rope::read_kind(config, "sliding_attention", head_dim, &sliding)?,
    ];
    Ok(build(family, &Details { windows, ropes, ..details }))
}

/// Builds the model of `family`. The second table of angles, if there is one, belongs to the layers with a window.
fn build(family: &Family, details: &Details) -> ModelConfig {
    let Details { dimensions, norm, ropes, .. } = details;
    let (hidden, inner) = (dimensions.hidden_size, dimensions.intermediate_size);
    let blocks = blocks("model.layers.{layer}.", hidden, dimensions.num_hidden_layers, |line, h, layer| {
        let window = details.windows[layer];
        let table = if window.is_some() { ropes.len() - 1 } else { 0 };
        let spec = SelfAttention {
            attention: Attention { window, ..details.attention.attention },
            norms: HeadNorms::Whole(*norm),
            rope: Some(Turn::halves(table)),
            ..details.attention
        };
        let branch = line.self_attention(h, hidden, &spec);
        let branch = line.norm(branch, "post_attention_layernorm", *norm);
        let h = line.add(h, branch);
        let branch = line.gated_mlp(h, details.activation, inner, false);
        let branch = line.norm(branch, "post_feedforward_layernorm", *norm);
        line.add(h, branch)
    });
    decoder(family, dimensions, *norm, ropes.clone(), blocks)
}
