//! Reads the sliding window of attention of each layer. Families differ in the key that switches it on.

use serde_json::Value;

use super::fields::Fields;
use crate::Result;

/// The window of every layer; `None` for a layer that attends to all positions.
pub(in crate::family) type Windows = Vec<Option<usize>>;

/// No window in any of `layers` layers.
pub(in crate::family) fn none(layers: usize) -> Windows {
    vec![None; layers]
}

/// The windows of Mistral: the same in every layer. As in transformers, it is 4096 if the key is absent, and there is
/// none if the key is null.
pub(in crate::family) fn mistral(config: Fields<'_>, layers: usize) -> Result<Windows> {
    if config.is_null("sliding_window") {
        return Ok(none(layers));
    }
    by_kind(config, layers, Some(4096), |_| true)
}

/// The windows of Qwen2 and Qwen3, which `use_sliding_window` switches on. The first `max_window_layers` layers attend
/// to all positions.
pub(in crate::family) fn qwen(config: Fields<'_>, layers: usize) -> Result<Windows> {
    let full = match config.get("max_window_layers") {
        None => 28,
        Some(full) => full.as_u64().ok_or_else(|| config.refuse("max_window_layers", "a whole number"))?,
    };
    if !config.flag("use_sliding_window")?.unwrap_or(false) {
        config.pass_over(&["sliding_window", "layer_types"]);
        return Ok(none(layers));
    }
    by_kind(config, layers, Some(4096), |layer| layer as u64 >= full)
}

/// The windows of a model whose `layer_types` name the layers that have one, all of `sliding_window` keys. `width`: the
/// width if the file has no such key. `slides`: whether a layer has a window if the file has no `layer_types`.
///
/// Errors: `Error::Input` if there is another kind of layer, or a layer with a window whose width is not known.
pub(in crate::family) fn by_kind(
    config: Fields<'_>,
    layers: usize,
    width: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Windows> {
    let width = config.count("sliding_window")?.or(width);
    let window = |slides: bool| match width {
        _ if !slides => Ok(None),
        Some(width) => Ok(Some(width)),
        None => Err(config.refuse("sliding_window", "the number of keys that a sliding layer sees")),
    };
    match kinds(config, layers)? {
        Some(kinds) => kinds.into_iter().map(window).collect(),
        None => (0..layers).map(|layer| window(slides(layer))).collect(),
    }
}

/// Reads `layer_types`: for each layer, whether it has a window. `None` if the key is absent.
pub(in crate::family) fn kinds(config: Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(list) = config.get("layer_types") else { return Ok(None) };
    let kind = |kind: &Value| match kind.as_str()? {
        "full_attention" => Some(false),
        "sliding_attention" => Some(true),
        _ => None,
    };
    let kinds: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().map(kind).collect());
    match kinds.filter(|kinds| kinds.len() == layers) {
        Some(kinds) => Ok(Some(kinds)),
        None => {
            let expected = format!("\"full_attention\" or \"sliding_attention\" for each of the {layers} layers");
            Err(config.refuse("layer_types", &expected))
        }
    }
}
