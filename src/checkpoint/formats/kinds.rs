//! Rules for the layers of a model: regular expressions that quantization configurations use to name layers.

use std::collections::HashMap;

use crate::checkpoint::format::PlannedModel;
use crate::family::LinearSpec;

/// The linear layers that stand at the same place in their blocks, such as all `mlp.up_proj`.
pub(super) struct LayerKind<'a> {
    /// The module path before the number of the block and after it. `None` for a layer whose path has no number.
    pub place: Option<(&'a str, &'a str)>,
    /// The layers with their bits per code, `None` for a layer that is not quantized.
    layers: Vec<(&'a LinearSpec, Option<u32>)>,
}

impl<'a> LayerKind<'a> {
    /// Groups the linear layers of `model` by their place, in the order of the first layers.
    pub fn all(model: &'a PlannedModel) -> Vec<Self> {
        let mut kinds: Vec<Self> = Vec::new();
        let mut known = HashMap::new();
        for linear in &model.linears {
            let place = split_at_block_number(&linear.name);
            let key = place.ok_or(linear.name.as_str());
            let index = *known.entry(key).or_insert(kinds.len());
            if index == kinds.len() {
                kinds.push(Self { place, layers: Vec::new() });
            }
            kinds[index].layers.push((linear, model.bits_of(&linear.name)));
        }
        kinds
    }

    /// Whether these layers keep their weights in every block.
    pub fn is_kept(&self) -> bool {
        self.place.is_some() && self.layers.iter().all(|(_, bits)| bits.is_none())
    }

    /// The rules that describe these layers: a regular expression for the module path, and bits per code or `None`.
    /// There is one rule if all blocks are alike, and one rule per layer otherwise.
    pub fn rules(&self) -> Vec<(String, Option<u32>)> {
        let first = self.layers[0].1;
        match self.place {
            Some((outside, inside)) if self.layers.iter().all(|(_, bits)| *bits == first) => {
                vec![(format!(r"{}\.\d+\.{}", regex::escape(outside), regex::escape(inside)), first)]
            }
            _ => self.layers.iter().map(|(linear, bits)| (regex::escape(&linear.name), *bits)).collect(),
        }
    }
}

/// Splits a module path at its first number: `model.layers.3.mlp.up_proj` gives `model.layers` and `mlp.up_proj`.
fn split_at_block_number(path: &str) -> Option<(&str, &str)> {
    path.match_indices('.').find_map(|(dot, _)| {
        let (number, inside) = path[dot + 1..].split_once('.')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some((&path[..dot], inside))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_at_the_number_of_its_block() {
        assert_eq!(split_at_block_number("model.layers.3.mlp.up_proj"), Some(("model.layers", "mlp.up_proj")));
        assert_eq!(split_at_block_number("h.12.mlp.experts.3.up"), Some(("h", "mlp.experts.3.up")));
        for path in ["lm_head", "model.embed_tokens", "layers.7", "3.x", "a..b"] {
            assert_eq!(split_at_block_number(path), None, "{path}");
        }
    }
}
