//! The packed formats besides GPTQ: their bytes against those of other programs (tests/fixtures/formats/make.py), whole checkpoints
//! that are written and read back, and grids that a format cannot store.

use aquatint::checkpoint::format::PlannedLayer;
use aquatint::checkpoint::formats::{FORMATS, named};
use aquatint::checkpoint::{
    Checkpoint, CheckpointWriter, DEFAULT_SHARD_LIMIT, DirectorySink, Dtype, Existing, LayerPlan, QuantizationSettings,
    WritePlan,
};
use aquatint::family::LinearSpec;
use aquatint::ops::grid::{GridSpec, ScaleType, Symmetry};
use aquatint::stored::QuantizedLinear;
use aquatint::{Result, bundled};
use half::f16;
use pollster::block_on;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::small_model::random_layer;

fn numbers(case: &Value, key: &str) -> Vec<f64> {
    case[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn size(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

#[test]
fn the_tensors_are_those_of_other_programs() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../fixtures/formats/packed.json")).unwrap();
    for case in &cases {
        let (rows, columns, group_size) = (size(case, "rows"), size(case, "columns"), size(case, "group_size"));
        let bytes = |key| numbers(case, key).into_iter().map(|value| value as u8).collect::<Vec<u8>>();
        let symmetry = if case["symmetric"].as_bool().unwrap() { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        let linear = QuantizedLinear {
            name: "layer".to_string(),
            rows,
            columns,
            grid: GridSpec::new(size(case, "bits") as u32, group_size, symmetry, ScaleType::F16),
            codes: bytes("codes"),
            scales: numbers(case, "scales").into_iter().map(|scale| f16::from_f64(scale).to_f32()).collect(),
            zeros: bytes("zeros").into_iter().map(f32::from).collect(),
            units: Vec::new(),
        };
        let weight: Vec<f32> = numbers(case, "weight").into_iter().map(|value| value as f32).collect();
        assert_eq!(linear.dequantize(), weight);
        let format = named(case["format"].as_str().unwrap()).unwrap();
        let layer =
            PlannedLayer { spec: LinearSpec::new("layer", rows, columns), grid: linear.grid, original: Dtype::F16 };
        let contents = format.pack(&layer, &linear.clone().into()).unwrap();
        let parts = format.parts(&layer);
        assert_eq!(parts.len(), contents.len());
        let mut compared = 0;
        for (part, content) in parts.iter().zip(&contents) {
            let elements: usize = part.shape.iter().product();
            assert_eq!(content.len(), elements * part.dtype.bitsize() / 8, "{part:?}");
            let suffix = part.name.strip_prefix("layer.").unwrap();
            if let Some(words) = case["parts"].get(suffix) {
                let words =
                    words.as_array().unwrap().iter().flat_map(|word| (word.as_u64().unwrap() as u32).to_le_bytes());
                assert_eq!(content, &words.collect::<Vec<u8>>(), "{}, {part:?}", format.name());
                compared += 1;
            }
        }
        assert_eq!(compared, case["parts"].as_object().unwrap().len());
    }
}

/// Writes random layers of the bundled model in `format`, reads them back, and returns config.json.
fn round_trip(format: &str, settings: QuantizationSettings, bits: impl Fn(&str) -> Option<u32>) -> Value {
    let source = block_on(bundled::checkpoint()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let layers: Vec<QuantizedLinear> = source
        .config()
        .linears()
        .iter()
        .filter_map(|spec| {
            Some(random_layer(&mut rng, spec, &QuantizationSettings { bits: bits(&spec.name)?, ..settings }))
        })
        .collect();
    let plan: Vec<LayerPlan> =
        layers.iter().map(|layer| LayerPlan { name: layer.name.clone(), bits: layer.grid.bits }).collect();
    let plan = WritePlan::new(&source, named(format).unwrap(), settings, &plan, DEFAULT_SHARD_LIMIT).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let sink = DirectorySink::new(&out, Existing::Refuse, None).unwrap();
    let mut writer = CheckpointWriter::new(&source, plan, Box::new(sink)).unwrap();
    for layer in &layers {
        block_on(writer.put_linear(&layer.clone().into())).unwrap();
    }
    block_on(writer.finish()).unwrap();
    let read = block_on(Checkpoint::open(&out)).unwrap();
    for layer in &layers {
        let name = format!("{}.weight", layer.name);
        assert!(read.is_packed(&name), "{name}");
        let weight = layer.dequantize();
        assert_eq!(block_on(read.read(&name)).unwrap(), weight, "{format}, {name}, {settings:?}");
        let some = block_on(read.read_rows(&name, 3..5)).unwrap();
        assert_eq!(some, weight[3 * layer.columns..5 * layer.columns]);
    }
    let packed = source.config().linears().iter().filter(|spec| read.is_packed(&spec.weight())).count();
    assert_eq!(packed, layers.len());
    serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap()
}

fn settings(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantizationSettings {
    QuantizationSettings { bits, group_size, symmetric, damping: 0.01 }
}

#[test]
fn checkpoints_read_back_exactly() {
    for (symmetric, group_size) in [(true, Some(32)), (true, None), (false, Some(32)), (false, None)] {
        for bits in [2, 3, 4, 8] {
            let settings = settings(bits, group_size, symmetric);
            let config = round_trip("compressed-tensors", settings, |_| Some(bits));
            let weights = &config["quantization_config"]["config_groups"]["group_0"]["weights"];
            assert_eq!(weights["num_bits"], bits);
            assert_eq!(weights["strategy"], if group_size.is_some() { "group" } else { "channel" });
        }
        let config = round_trip("awq", settings(4, group_size, symmetric), |_| Some(4));
        assert_eq!(config["quantization_config"]["modules_to_not_convert"], json!(["lm_head"]));
    }
}

#[test]
fn layers_with_bits_of_their_own_have_groups_of_settings() {
    let bits = |name: &str| match name {
        name if name.contains("down_proj") => None,
        name if name.contains("q_proj") => Some(8),
        _ => Some(3),
    };
    let config = round_trip("compressed-tensors", settings(3, Some(32), true), bits);
    let groups = &config["quantization_config"]["config_groups"];
    assert_eq!(groups["group_1"]["targets"], json!([r"re:^model\.layers\.\d+\.self_attn\.q_proj$"]));
    assert_eq!(
        (&groups["group_0"]["weights"]["num_bits"], &groups["group_1"]["weights"]["num_bits"]),
        (&json!(3), &json!(8))
    );
    assert_eq!(groups["group_0"]["targets"].as_array().unwrap().len(), 5);
    let config = round_trip("awq", settings(4, Some(32), false), |name| bits(name).map(|_| 4));
    let kept = config["quantization_config"]["modules_to_not_convert"].as_array().unwrap().clone();
    assert_eq!(kept.len(), 1 + 8, "{kept:?}");
}

#[test]
fn a_grid_that_a_format_cannot_store_is_refused_in_a_sentence() {
    let grid = |format: &str, rows, columns, settings: QuantizationSettings| -> Result<()> {
        let linear = LinearSpec::new("layer", rows, columns);
        named(format).unwrap().grid(&linear, settings.wish(columns, settings.bits)).map(|_| ())
    };
    let refused = |result: Result<()>, part: &str| assert!(result.unwrap_err().to_string().contains(part), "{part}");
    refused(grid("awq", 64, 64, settings(3, Some(32), false)), "4, as the AWQ format has it");
    refused(grid("awq", 20, 64, settings(4, Some(32), false)), "a multiple of 8");
    refused(grid("awq", 64, 96, settings(4, Some(64), false)), "a group size that divides them");
    refused(grid("compressed-tensors", 5, 96, settings(3, Some(64), false)), "a group size that divides them");
    assert!(grid("compressed-tensors", 5, 7, settings(3, None, false)).is_ok());
}

#[test]
fn every_format_has_a_name_of_its_own() {
    let mut names: Vec<&str> = FORMATS.iter().map(|format| format.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FORMATS.len());
}
