//! Helium: the block of LLaMA, where neighbouring columns of a head turn together. The output of attention never has a
//! bias. Equations and keys: transformers, models/helium.

use super::llama::{Defaults, Details};
use super::parts::{SelfAttention, Turn};
use super::{About, Family, Keys};

/// Helium 1.
pub(super) const HELIUM: Family = Family {
    architecture: "HeliumForCausalLM",
    model_type: "helium",
    keys: Keys::Top,
    read: |family, config| {
        let defaults = Defaults { epsilon: 1e-8, ..Defaults::with_theta(1e5).with_head_dim(128) };
        let details = Details::read(config, defaults)?;
        let [bias, _] = details.attention.bias;
        let attention = SelfAttention { bias: [bias, false], rope: Some(Turn::neighbours(0)), ..details.attention };
        Ok(Details { attention, ..details }.build(family))
    },
    about: About {
        name: "Helium",
        models: "Helium 1",
        features: "neighbouring rotary pairs",
        missing: "",
        fixtures: &["helium"],
    },
};
