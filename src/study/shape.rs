//! Makes the `config.json` of a smaller model of the same family, for runs on random weights.

use serde_json::{Map, Value, json};

use crate::ModelConfig;

/// The keys that hold the number of blocks.
const DEPTHS: [&str; 2] = ["num_hidden_layers", "n_layer"];

/// Changes the numbers under `names` that `keys` has.
pub(super) fn change(keys: &mut Map<String, Value>, names: &[&str], change: impl Fn(usize) -> usize) {
    for name in names {
        if let Some(value) = keys.get(*name).and_then(Value::as_u64) {
            keys.insert(name.to_string(), json!(change(value as usize)));
        }
    }
}

/// `config`, which describes `model`, with `blocks` of its blocks, at least 1: the first ones, or what the family makes
/// of fewer blocks. Weights in low precision become ordinary ones.
pub fn with_blocks(config: &Map<String, Value>, model: &ModelConfig, blocks: usize) -> Map<String, Value> {
    let all = model.blocks.len();
    let mut config = config.clone();
    config.remove("quantization_config");
    let keys = model.keys_in(&mut config);
    change(keys, &DEPTHS, |_| blocks);
    // Lists with an entry per block.
    for list in keys.values_mut().filter_map(Value::as_array_mut).filter(|list| list.len() == all) {
        list.truncate(blocks);
    }
    // Gemma 4: in the last block attention sees all positions, whatever the file says.
    if let Some(single) = keys.get_mut("per_layer_config").and_then(Value::as_object_mut) {
        let last = single.get(&(all - 1).to_string()).cloned();
        single.retain(|layer, _| layer.parse::<usize>().is_ok_and(|layer| layer + 1 < blocks));
        single.extend(last.map(|last| ((blocks - 1).to_string(), last)));
    }
    config
}
