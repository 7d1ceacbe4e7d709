//! Arcee (AFM): the block of LLaMA with a MLP without a gate, down(ReLU(up x)²). Equations and keys: transformers,
//! models/arcee.

use super::graph::Activation;
use super::llama::{Defaults, Details};
use super::{About, Family, Keys};

/// AFM 4.5B.
pub(super) const ARCEE: Family = Family {
    architecture: "ArceeForCausalLM",
    model_type: "arcee",
    keys: Keys::Top,
    read: |family, config| {
        let defaults = Defaults { epsilon: 1e-5, activation: Activation::ReluSquared, ..Defaults::LLAMA };
        let details = Details::read(config, defaults)?;
        Ok(Details { gated: false, ..details }.build(family))
    },
    about: About {
        name: "Arcee",
        models: "AFM 4.5B",
        features: "a MLP without a gate, ReLU²",
        missing: "",
        fixtures: &["arcee"],
    },
};
