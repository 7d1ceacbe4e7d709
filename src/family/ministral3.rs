//! Ministral 3: the block of LLaMA with YaRN, and queries that grow with their position. Equations and keys:
//! transformers, models/ministral3.

use super::config::fields::Fields;
use super::config::rope::{Growth, Rope, RopeDefaults};
use super::config::window;
use super::graph::{ModelConfig, Pairs};
use super::llama::{Defaults, Details};
use super::parts::{SelfAttention, Turn};
use super::{About, Family, Keys};
use crate::Result;

/// Ministral 3, the language model alone.
pub(super) const MINISTRAL3: Family = Family {
    architecture: "Ministral3ForCausalLM",
    model_type: "ministral3",
    keys: Keys::Top,
    read,
    about: About {
        name: "Ministral 3",
        models: "Ministral 3, the language model alone",
        features: "YaRN, queries that grow with their position",
        missing: "",
        fixtures: &["ministral3"],
    },
};

/// Ministral 3 and Mistral Small 3 with their vision tower.
pub(super) const MISTRAL3: Family = Family {
    architecture: "Mistral3ForConditionalGeneration",
    model_type: "mistral3",
    keys: Keys::Text,
    read,
    about: About {
        name: "Mistral Small 3",
        models: "Ministral 3 and Mistral Small 3 with a vision tower",
        features: "the language model of a wrapper",
        missing: "",
        fixtures: &["mistral3-wrapper"],
    },
};

/// Files without `rope_parameters` are refused, because transformers would take a whole set of numbers of its own.
const DEFAULTS: Defaults =
    Defaults { epsilon: 1e-5, rope: Some(RopeDefaults { theta: None, ..RopeDefaults::PLAIN }), ..Defaults::NO_BIAS };

fn read(family: &Family, config: Fields<'_>) -> Result<ModelConfig> {
    // A wrapper may hold the older Mistral, whose heads and windows have other defaults, and does if it does not say.
    let older = family.keys == Keys::Text && matches!(config.text("model_type")?, None | Some("mistral"));
    let details = Details::read(config, if older { DEFAULTS } else { DEFAULTS.with_head_dim(128) })?;
    let layers = details.windows.len();
    let windows = if older {
        window::mistral(config, layers)?
    } else {
        let width = config.count("sliding_window")?;
        window::by_kind(config, layers, width, |_| width.is_some())?
    };
    let mut ropes = details.ropes.clone();
    let mut turn = Turn::halves(0);
    if let Some(growth) = Growth::read(config)? {
        ropes.push(Rope { growth: Some(growth), ..ropes[0].clone() });
        turn = Turn { tables: [1, 0], pairs: Pairs::Halves };
    }
    let attention = SelfAttention { rope: Some(turn), ..details.attention };
    Ok(Details { windows, ropes, attention, ..details }.build(family))
}
