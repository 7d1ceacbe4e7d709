//! Judges the keys of `config.json` that the reader of a family did not ask for. A key that would change the results is
//! an error, a key that changes nothing is passed over, and any other is listed for the user.

use serde_json::{Map, Value};

use super::fields::{Fields, Reads, abridged};
use crate::{Error, Result};

/// A value with which a key changes nothing, besides null.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// False, zero, or nothing in a list or object.
    Off,
    /// True.
    On,
    /// The number 1.
    One,
    /// Full attention in every layer.
    FullAttention,
    /// RoPE without scaling.
    Unscaled,
}

/// Keys that change the results of a model, unless they have the neutral value. Most of them belong to some families
/// only. A family that computes what such a key says reads it, so it is not looked up here.
const CHANGES: &[(Neutral, &[&str])] = &[
    // The function inside the MLP.
    (Neutral::Off, &["hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act", "swiglu_limit"]),
    // Biases.
    (Neutral::Off, &["attention_bias", "attention_in_bias", "attention_out_bias", "qkv_bias", "use_qkv_bias"]),
    (Neutral::Off, &["mlp_bias", "lm_head_bias", "use_bias", "bias", "tie_word_embeddings"]),
    (Neutral::On, &["enable_bias", "layer_norm_elementwise_affine", "scale_attn_weights"]),
    // Which positions attention sees, and how it knows them.
    (Neutral::Off, &["sliding_window", "use_sliding_window", "sliding_window_pattern", "attention_chunk_size"]),
    (Neutral::Off, &["alibi", "use_alibi", "use_bidirectional_attention", "attn_temperature_tuning"]),
    (Neutral::Off, &["add_cross_attention", "is_encoder_decoder", "index_topk", "use_mrope", "llama_4_scaling_beta"]),
    (Neutral::Off, &["no_rope_layers", "layer_rope_theta", "rope_local_base_freq", "rope_interleave"]),
    (Neutral::Off, &["rope_interleaved", "rotary_dim", "position_embedding_scale"]),
    (Neutral::One, &["partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_scaling_factor"]),
    (Neutral::One, &["short_mscale", "long_mscale"]),
    (Neutral::FullAttention, &["layer_types", "layers_block_type"]),
    (Neutral::Unscaled, &["rope_scaling", "rope_parameters"]),
    // Scales and limits of attention scores, residual connections and logits.
    (Neutral::Off, &["query_pre_attn_scalar", "attention_multiplier", "qk_scale_factor", "clip_qkv"]),
    (Neutral::Off, &["attn_logit_softcapping", "final_logit_softcapping", "attention_logit_cap"]),
    (Neutral::Off, &["scale_attn_by_inverse_layer_idx", "scale_embedding", "scale_depth", "dim_model_base"]),
    (Neutral::One, &["logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier", "key_multiplier"]),
    (Neutral::One, &["embedding_multiplier", "residual_multiplier", "scale_emb", "embedding_scale"]),
    // Norms and the order of the parts of a block.
    (Neutral::Off, &["qk_layernorm", "qk_norm", "use_qk_norm", "apply_residual_connection_post_layernorm"]),
    (Neutral::Off, &["use_parallel_residual", "parallel_attn", "_remove_final_layer_norm"]),
    // Heads, experts and parts of a block that most families do not have.
    (Neutral::Off, &["q_lora_rank", "kv_lora_rank", "num_kv_shared_layers", "attention_k_eq_v", "use_double_wide_mlp"]),
    (Neutral::Off, &["hidden_size_per_layer_input", "enable_moe_block", "use_attention_gate", "pruned_heads"]),
    (Neutral::Off, &["num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"]),
];

/// Keys that change no result of inference, by the reason.
const HARMLESS: &[&[&str]] = &[
    // What the file describes and which program wrote it. `Family::of` reads the first two.
    &["architectures", "model_type", "_name_or_path", "_commit_hash", "transformers_version", "is_llama_config"],
    &["unsloth_version", "unsloth_fixed", "transformers.js_config", "base_model_name_or_path", "model_name"],
    // Python files of the release, for clients that do not know the architecture.
    &["auto_map"],
    // The types of the weights. The tensors state their own.
    &["dtype", "torch_dtype"],
    // The quantization of the weights, which the reader of the format checks.
    &["quantization_config", "compression_config", "quantization"],
    // Training.
    &["initializer_range", "initializer_factor", "init_std", "layerdrop", "gradient_checkpointing"],
    &["router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise", "output_router_logits", "tf_legacy_loss"],
    // How other programs run the model. Some of these change the rounding, but not what is computed.
    &["use_cache", "cache_implementation", "pretraining_tp", "tp_plan", "attn_implementation", "use_flash_attention"],
    &["_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "torchscript", "use_bfloat16"],
    &["return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"],
    &["chunk_size_feed_forward", "attention_softmax_in_fp32", "reorder_and_upcast_attn", "slow_but_exact"],
    &["scale_attention_softmax_in_fp32"],
    &["masked_softmax_fusion", "bias_dropout_fusion", "skip_bias_add", "skip_bias_add_qkv", "is_decoder"],
    // The tokenizer and generation, which have files of their own.
    &["tokenizer_class", "prefix", "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "top_k"],
    &["top_p", "typical_p", "temperature", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"],
    &["encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "num_beam_groups"],
    &["num_return_sequences", "diversity_penalty", "exponential_decay_length_penalty", "remove_invalid_values"],
    // Lengths of texts, which families without scaled RoPE do not need.
    &["max_position_embeddings", "original_max_position_embeddings", "max_sequence_length", "model_max_length"],
    &["seq_length", "n_ctx"],
    // Sizes of parts that other keys switch on: sliding windows and per-layer inputs.
    &["max_window_layers", "vocab_size_per_layer_input"],
    // Other tasks than continuing a text.
    &["id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task", "task_specific_params"],
    &["cross_attention_hidden_size", "tie_encoder_decoder"],
    // Other modalities, whose tensors are copied as they are.
    &["vision_config", "audio_config", "mm_tokens_per_image", "projector_hidden_act", "projector_hidden_size"],
    &["multimodal_projector_bias", "spatial_merge_size", "vision_feature_layer", "out_hidden_size"],
    // What other keys follow from in the same file.
    &["_sliding_window_pattern"],
];

/// Endings and beginnings of keys that change no result of inference: random noise of training, numbers of special
/// tokens, and the summaries of classifiers.
const HARMLESS_ENDINGS: &[&str] = &["dropout", "dropout_prob", "pdrop", "_token_id", "_token_index", "_token_ids"];
const HARMLESS_BEGINNINGS: &[&str] = &["summary_"];

/// Lists the keys of `config` that no reader asked for and whose effect is not known. `place`: what stands before the
/// names of the keys, such as `text_config.`.
///
/// Errors: `Error::Input` if a key that was not read changes the results.
pub(in crate::family) fn unknown_keys(config: Fields<'_>, reads: &Reads, place: &str) -> Result<Vec<String>> {
    let mut unread = Vec::new();
    collect(config.object, reads, place, &mut unread);
    let mut unknown = Vec::new();
    for (path, key, value) in unread {
        match CHANGES.iter().find(|(_, keys)| keys.contains(&key)) {
            Some((neutral, _)) if !neutral.is(value) => return Err(refused(config, *neutral, &path, value)),
            Some(_) => {}
            None if value.is_null() || is_harmless(key) => {}
            None => unknown.push(path),
        }
    }
    Ok(unknown)
}

/// Collects the fields that were not read: their names with those of the objects around them, their keys, and their
/// values. The fields of an object count one by one if the object was read, and otherwise the object counts as a whole.
fn collect<'a>(
    object: &'a Map<String, Value>,
    reads: &Reads,
    place: &str,
    unread: &mut Vec<(String, &'a str, &'a Value)>,
) {
    for (key, value) in object {
        if !reads.contains(value) {
            unread.push((format!("{place}{key}"), key, value));
        } else if let Some(inner) = value.as_object() {
            collect(inner, reads, &format!("{place}{key}."), unread);
        }
    }
}

fn is_harmless(key: &str) -> bool {
    HARMLESS.iter().any(|keys| keys.contains(&key))
        || HARMLESS_ENDINGS.iter().any(|ending| key.ends_with(ending))
        || HARMLESS_BEGINNINGS.iter().any(|beginning| key.starts_with(beginning))
}

fn refused(config: Fields<'_>, neutral: Neutral, path: &str, value: &Value) -> Error {
    let expected = match neutral {
        Neutral::Off => "null, as this family does not compute what the key says",
        Neutral::On => "true or null, as this family does not compute what the key says",
        Neutral::One => "1 or null, as this family does not compute what the key says",
        Neutral::FullAttention => "\"full_attention\" in every layer, or null",
        Neutral::Unscaled => "RoPE without scaling, or null",
    };
    let found = format!("\"{path}\": {}", abridged(value));
    Error::input(config.subject, found, expected, "choose another model, or remove the key if it has no effect")
}

impl Neutral {
    /// Whether `value` changes nothing.
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Off, Value::Bool(on)) => !on,
            (Self::Off, Value::Number(number)) => number.as_f64() == Some(0.0),
            (Self::Off, Value::Array(list)) => list.is_empty(),
            (Self::Off, Value::Object(object)) => object.is_empty(),
            (Self::On, Value::Bool(on)) => *on,
            (Self::One, Value::Number(number)) => number.as_f64() == Some(1.0),
            (Self::FullAttention, Value::Array(kinds)) => {
                kinds.iter().all(|kind| kind == "full_attention" || kind == "attention")
            }
            (Self::Unscaled, Value::Object(object)) => {
                let kind = object.get("rope_type").or_else(|| object.get("type"));
                kind.is_none_or(|kind| kind == "default")
            }
            _ => false,
        }
    }
}
