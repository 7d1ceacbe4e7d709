//! `engine::rope::table`: compared with the frequencies and factors of transformers (tests/fixtures/rope/make.py).

use aquatint::ModelConfig;
use aquatint::engine::rope::table;
use aquatint::family::{Growth, Rope, RopeScaling};
use serde_json::{Value, json};

fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/rope/tables.json")).unwrap()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The only table of a model with these keys in its `config.json`.
fn rope(keys: &Value) -> Rope {
    let mut config = json!({
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 100,
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let mut ropes = ModelConfig::parse(&config.to_string(), "config.json").unwrap().ropes;
    assert_eq!(ropes.len(), 1);
    ropes.remove(0)
}

#[test]
fn tables_agree_with_transformers() {
    for case in fixture()["tables"].as_array().unwrap() {
        let (name, positions) = (&case["name"], case["positions"].as_u64().unwrap() as usize);
        let rope = rope(&case["config"]);
        let (frequencies, factor) = (numbers(&case["frequencies"]), case["attention_factor"].as_f64().unwrap());
        assert_eq!(rope.rotated, 2 * frequencies.len(), "{name}");
        let angles = table(&rope, positions);
        assert_eq!(angles.len(), positions * rope.rotated);
        for (position, row) in angles.chunks(rope.rotated).enumerate() {
            let (cosines, sines) = row.split_at(frequencies.len());
            for ((&cos, &sin), frequency) in cosines.iter().zip(sines).zip(&frequencies) {
                let (cos, sin, angle) = (f64::from(cos), f64::from(sin), position as f64 * frequency);
                assert!((cos.hypot(sin) - factor).abs() < 1e-6, "{name}: {} at {position}", cos.hypot(sin));
                let tolerance = 1e-6 * (1.0 + angle);
                assert!((cos - factor * angle.cos()).abs() < tolerance, "{name}: {cos} at {position}");
                assert!((sin - factor * angle.sin()).abs() < tolerance, "{name}: {sin} at {position}");
                // No angle at position 1 is greater than 1 radian, so it can be read from the table. The f32 numbers of
                // transformers lose digits where frequencies are mixed.
                let apart = (sin.atan2(cos) - frequency).abs();
                assert!(position != 1 || apart <= 1e-5 * frequency, "{name}: {apart} from {frequency}");
            }
        }
    }
}

#[test]
fn queries_grow_as_in_transformers() {
    let growth = &fixture()["growth"];
    let scales = numbers(&growth["scales"]);
    let plain = Rope { rotated: 6, theta: 10_000.0, scaling: RopeScaling::None, growth: None };
    let grows = Growth {
        beta: growth["beta"].as_f64().unwrap(),
        original_max_position_embeddings: growth["original_max_position_embeddings"].as_u64().unwrap() as usize,
    };
    let queries = table(&Rope { growth: Some(grows), ..plain.clone() }, scales.len());
    let keys = table(&plain, scales.len());
    for (at, (query, key)) in queries.iter().zip(keys).enumerate() {
        let expected = f64::from(key) * scales[at / 6];
        assert!((f64::from(*query) - expected).abs() < 1e-6, "{query} at {at}, expected {expected}");
    }
    assert!(scales[29] > 1.1);
}
