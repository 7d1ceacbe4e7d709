//! Reads the sliding window of attention. Families differ in the key that switches it on.

use super::fields::Fields;
use crate::Result;

/// The window of Mistral. As in transformers, it is 4096 if the key is absent, and there is none if the key is null.
pub(in crate::family) fn mistral(config: Fields<'_>) -> Result<Option<usize>> {
    if config.object.get("sliding_window").is_some_and(serde_json::Value::is_null) {
        return Ok(None);
    }
    let window = width(config)?;
    Ok(kind_of_all_layers(config)?.unwrap_or(true).then_some(window))
}

/// The window of Qwen2 and Qwen3, which `use_sliding_window` switches on. The first `max_window_layers` layers attend
/// to all positions.
///
/// Errors: `Error::Input` if only some layers have a window, which is not supported.
pub(in crate::family) fn qwen(config: Fields<'_>) -> Result<Option<usize>> {
    if !config.flag("use_sliding_window")?.unwrap_or(false) {
        return Ok(None);
    }
    let window = width(config)?;
    let layers = config.required_count("num_hidden_layers")?;
    if let Some(sliding) = kind_of_all_layers(config)? {
        return Ok(sliding.then_some(window));
    }
    match config.get("max_window_layers").map_or(Some(28), serde_json::Value::as_u64) {
        Some(0) => Ok(Some(window)),
        Some(full) if full >= layers as u64 => Ok(None),
        _ => Err(config.refuse("max_window_layers", SAME_KIND)),
    }
}

const SAME_KIND: &str = "the same kind of attention in every layer";

fn width(config: Fields<'_>) -> Result<usize> {
    Ok(config.count("sliding_window")?.unwrap_or(4096))
}

/// Reads `layer_types`: whether all layers have a window (`true`) or none has one (`false`). `None` if the key is
/// absent.
fn kind_of_all_layers(config: Fields<'_>) -> Result<Option<bool>> {
    let Some(kinds) = config.get("layer_types") else { return Ok(None) };
    let kinds = kinds.as_array().ok_or_else(|| config.refuse("layer_types", "a list of strings"))?;
    match ["full_attention", "sliding_attention"].map(|wanted| kinds.iter().all(|kind| kind == wanted)) {
        [true, _] => Ok(Some(false)),
        [_, true] => Ok(Some(true)),
        _ => Err(config.refuse("layer_types", SAME_KIND)),
    }
}
