//! Qwen2, Qwen2.5 and Qwen3 (dense). They use the block of LLaMA with biases on q, k and v, or with a norm of every
//! query and key head.

use super::Family;
use super::config::window;
use super::llama::{Details, build};

/// Qwen2 and Qwen2.5: biases on q, k and v.
pub(super) const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    read: |family, config| {
        build(family, config, None, Details { qkv_bias: true, window: window::qwen(config)?, ..Details::default() })
    },
};

/// Qwen3: an RMSNorm on every query and key head. As in transformers, heads have 128 columns by default, whatever the
/// width of the model.
pub(super) const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    read: |family, config| {
        let bias = config.flag("attention_bias")?.unwrap_or(false);
        let window = window::qwen(config)?;
        let details = Details { qkv_bias: bias, o_bias: bias, head_norms: true, window, ..Details::default() };
        build(family, config, Some(128), details)
    },
};
