//! Granite 3 (dense): the block of LLaMA with four numbers that multiply the embedding, the branches, the scores
//! and the logits. Equations and keys: transformers, models/granite.

use super::graph::Attention;
use super::llama::{Defaults, Details, Multipliers};
use super::parts::SelfAttention;
use super::{About, Family, Keys};

/// Granite, dense, with attention in every layer.
pub(super) const GRANITE: Family = Family {
    architecture: "GraniteForCausalLM",
    model_type: "granite",
    keys: Keys::Top,
    read: |family, config| {
        let details = Details::read(config, Defaults::LLAMA)?;
        let multipliers = Multipliers {
            embedding: config.positive("embedding_multiplier")?.unwrap_or(1.0),
            residual: config.positive("residual_multiplier")?.unwrap_or(1.0),
            logits: 1.0 / config.positive("logits_scaling")?.unwrap_or(1.0),
        };
        let scale = config.positive("attention_multiplier")?.unwrap_or(1.0);
        let attention = Attention { scale, ..details.attention.attention };
        let attention = SelfAttention { attention, ..details.attention };
        Ok(Details { multipliers, attention, ..details }.build(family))
    },
    about: About {
        name: "Granite",
        models: "Granite 3, dense",
        features: "multipliers of embedding, branches, scores and logits",
        missing: "Granite 4.0, of another architecture in every size (GraniteMoeHybrid)",
        fixtures: &["granite"],
    },
};
