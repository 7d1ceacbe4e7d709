//! Seed-OSS: the block of LLaMA with biases on q, k and v. Equations and keys: transformers, models/seed_oss.

use super::llama::{Defaults, Details};
use super::parts::SelfAttention;
use super::{About, Family, Keys};

/// Seed-OSS 36B.
pub(super) const SEED_OSS: Family = Family {
    architecture: "SeedOssForCausalLM",
    model_type: "seed_oss",
    keys: Keys::Top,
    read: |family, config| {
        let defaults = Defaults { attention_bias: Some(true), ..Defaults::LLAMA.with_head_dim(128) };
        let details = Details::read(config, defaults)?;
        let [bias, _] = details.attention.bias;
        let out = config.flag("attention_out_bias")?.unwrap_or(false);
        let attention = SelfAttention { bias: [bias, out], ..details.attention };
        Ok(Details { attention, ..details }.build(family))
    },
    about: About {
        name: "Seed-OSS",
        models: "Seed-OSS 36B",
        features: "biases on q, k and v",
        missing: "",
        fixtures: &["seed_oss"],
    },
};
