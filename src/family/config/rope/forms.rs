//! Writes both forms of RoPE into the `config.json` of a copy. Readers of one form ignore the other, and a reader of the
//! older form silently takes a missing top-level `rope_theta` as 10000.

use serde_json::{Map, Value};

use super::{Rope, RopeScaling};

/// Completes a `config.json` so that it describes the tables `ropes` in both forms. A file that describes a table for
/// each kind of layer stays as it is, since the older form of such files is a matter of the family.
pub(crate) fn state_both_forms(config: &mut Map<String, Value>, ropes: &[Rope]) {
    // A table with growth is that of the queries, beside the table of the keys.
    let mut tables = ropes.iter().filter(|rope| rope.growth.is_none());
    let (Some(rope), None) = (tables.next(), tables.next()) else { return };
    let parameters = config.get("rope_parameters").and_then(Value::as_object).cloned();
    if parameters.as_ref().is_some_and(|parameters| parameters.values().any(Value::is_object)) {
        return;
    }
    let theta = as_written(config, "rope_theta").unwrap_or_else(|| rope.theta.into());
    let share = as_written(config, "partial_rotary_factor");
    match parameters {
        Some(mut scaling) => {
            scaling.remove("rope_theta");
            scaling.remove("partial_rotary_factor");
            if rope.scaling != RopeScaling::None {
                config.insert("rope_scaling".into(), Value::Object(scaling));
            }
        }
        None => {
            let mut parameters = config.get("rope_scaling").and_then(Value::as_object).cloned().unwrap_or_default();
            let kind = parameters.remove("type");
            let kind = parameters.get("rope_type").cloned().or(kind).unwrap_or_else(|| "default".into());
            parameters.insert("rope_type".into(), kind);
            parameters.insert("rope_theta".into(), theta.clone());
            if let Some(share) = &share {
                parameters.insert("partial_rotary_factor".into(), share.clone());
            }
            config.insert("rope_parameters".into(), Value::Object(parameters));
        }
    }
    config.insert("rope_theta".into(), theta);
    if let Some(share) = share {
        config.insert("partial_rotary_factor".into(), share);
    }
}

/// The JSON number under `key` in any of the objects for RoPE, so that no digit changes.
fn as_written(config: &Map<String, Value>, key: &str) -> Option<Value> {
    let inner = ["rope_parameters", "rope_scaling"].map(|object| config.get(object).and_then(|object| object.get(key)));
    let written = inner.into_iter().flatten().chain(config.get(key)).find(|value| value.is_number());
    written.cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::family::Growth;

    /// `config` after [`state_both_forms`].
    fn stated(config: &Value, ropes: &[Rope]) -> Value {
        let mut config = config.as_object().unwrap().clone();
        state_both_forms(&mut config, ropes);
        Value::Object(config)
    }

    #[test]
    fn tables_of_kinds_of_layers_stay_as_they_are() {
        let rope = |theta| Rope { rotated: 4, theta, scaling: RopeScaling::None, growth: None };
        let kinds = [rope(1e6), rope(1e4)];
        let nested = json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}});
        let older = json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4});
        for (config, ropes) in [(&nested, &kinds[..]), (&nested, &kinds[..1]), (&older, &kinds)] {
            assert_eq!(&stated(config, ropes), config);
        }
        assert_eq!(stated(&json!({"vocab_size": 3}), &[]), json!({"vocab_size": 3}));
    }

    #[test]
    fn a_table_of_growing_queries_counts_as_that_of_the_keys() {
        let scaling = RopeScaling::Linear { factor: 2.0 };
        let keys = Rope { rotated: 4, theta: 500.0, scaling, growth: None };
        let growth = Some(Growth { beta: 0.1, original_max_position_embeddings: 8 });
        let queries = Rope { growth, ..keys.clone() };
        let inner = json!({"rope_type": "linear", "factor": 2, "llama_4_scaling_beta": 0.1, "rope_theta": 500});
        let both = stated(&json!({"rope_parameters": inner}), &[queries, keys]);
        assert_eq!(both["rope_theta"], 500);
        assert_eq!(both["rope_parameters"], inner);
        assert_eq!(both["rope_scaling"], json!({"rope_type": "linear", "factor": 2, "llama_4_scaling_beta": 0.1}));
    }
}
