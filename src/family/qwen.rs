//! Qwen2, Qwen2.5 and Qwen3 (dense). They use the block of LLaMA with biases on q, k and v, or with a norm of every
//! query and key head.

use super::config::window;
use super::llama::{Defaults, Details};
use super::parts::{HeadNorms, SelfAttention};
use super::{About, Family, Keys};

/// Qwen2 and Qwen2.5: biases on q, k and v.
pub(super) const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    keys: Keys::Top,
    read: |family, config| {
        let details = Details::read(config, Defaults::NO_BIAS)?;
        let windows = window::qwen(config, details.windows.len())?;
        let attention = SelfAttention { bias: [true, false], ..details.attention };
        Ok(Details { windows, attention, ..details }.build(family))
    },
    about: About {
        name: "Qwen2",
        models: "Qwen2 and Qwen2.5",
        features: "biases on q, k and v, sliding windows by layer",
        missing: "",
        fixtures: &["qwen2"],
    },
};

/// Qwen3: an RMSNorm on every query and key head. As in transformers, heads have 128 columns by default, whatever the
/// width of the model.
pub(super) const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    keys: Keys::Top,
    read: |family, config| {
        let details = Details::read(config, Defaults { mlp_bias: None, ..Defaults::LLAMA.with_head_dim(128) })?;
        let windows = window::qwen(config, details.windows.len())?;
        let attention = SelfAttention { norms: HeadNorms::PerHead(details.norm), ..details.attention };
        Ok(Details { windows, attention, ..details }.build(family))
    },
    about: About {
        name: "Qwen3",
        models: "Qwen3, dense",
        features: "norms of query and key heads, sliding windows by layer",
        missing: "",
        fixtures: &["qwen3"],
    },
};
