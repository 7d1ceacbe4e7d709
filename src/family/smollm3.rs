//! SmolLM3: the block of LLaMA, where every fourth layer does not rotate queries and keys. Such layers may have a
//! sliding window. Equations and keys: transformers, models/smollm3.

use serde_json::Value;

use super::config::fields::Fields;
use super::config::window::{self, Windows};
use super::llama::{Defaults, Details};
use super::{About, Family, Keys};
use crate::Result;

/// SmolLM3 3B.
pub(super) const SMOLLM3: Family = Family {
    architecture: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    keys: Keys::Top,
    read: |family, config| {
        let details = Details::read(config, Defaults::with_theta(2e6).tied())?;
        let rotates = rotates(config, details.rotates.len())?;
        let windows = windows(config, &rotates)?;
        Ok(Details { rotates, windows, ..details }.build(family))
    },
    about: About {
        name: "SmolLM3",
        models: "SmolLM3 3B",
        features: "layers without rotation, sliding windows by layer",
        missing: "",
        fixtures: &["smollm3"],
    },
};

/// Reads which of `layers` layers rotate queries and keys.
fn rotates(config: Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    let interval = config.count("no_rope_layer_interval")?.unwrap_or(4);
    let Some(list) = config.get("no_rope_layers") else {
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let flag = |value: &Value| match value.as_u64() {
        Some(flag @ 0..=1) => Some(flag == 1),
        _ => None,
    };
    let flags: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().map(flag).collect());
    let flags = flags.filter(|flags| flags.len() >= layers);
    flags
        .map(|flags| flags[..layers].to_vec())
        .ok_or_else(|| config.refuse("no_rope_layers", "0 or 1 for every layer, where 1 means rotation"))
}

/// Reads the windows of all layers. `use_sliding_window` switches them on.
fn windows(config: Fields<'_>, rotates: &[bool]) -> Result<Windows> {
    let width = config.count("sliding_window")?;
    if config.flag("use_sliding_window")?.unwrap_or(false) && width.is_some() {
        return window::by_kind(config, rotates.len(), width, |layer| !rotates[layer]);
    }
    match window::kinds(config, rotates.len())? {
        Some(kinds) if kinds.contains(&true) => {
            Err(config.refuse("layer_types", "no \"sliding_attention\" without use_sliding_window and sliding_window"))
        }
        _ => Ok(window::none(rotates.len())),
    }
}
