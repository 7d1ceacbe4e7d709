//! The packed formats besides GPTQ: their bytes against those of other programs (tests/fixtures/formats, make.py and
//! make_mlx.py), whole checkpoints that are written and read back, and grids that a format cannot store.

use std::path::Path;

use aquatint::checkpoint::change::Change;
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
use serde_json::{Value, json};

use crate::small_model::{Model, Stored, random_on, wish};

fn numbers(case: &Value, key: &str) -> Vec<f64> {
    case[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn size(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

/// The layers of make_mlx.py.
fn mlx_cases() -> Value {
    serde_json::from_str(include_str!("../fixtures/formats/mlx.json")).unwrap()
}

#[test]
fn the_tensors_are_those_of_other_programs() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../fixtures/formats/packed.json")).unwrap();
    for case in cases.iter().chain(mlx_cases()["packed"].as_array().unwrap()) {
        let (rows, columns, group_size) = (size(case, "rows"), size(case, "columns"), size(case, "group_size"));
        let bytes = |key| numbers(case, key).into_iter().map(|value| value as u8).collect::<Vec<u8>>();
        let scales: Vec<f32> = numbers(case, "scales").iter().map(|&scale| f16::from_f64(scale).to_f32()).collect();
        let zeros = bytes("zeros").into_iter().map(f32::from);
        let symmetry = if case["symmetric"].as_bool().unwrap() { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        let bits = size(case, "bits") as u32;
        // MLX has offsets, −s·z for a zero point z.
        let (grid, zeros) = match case["format"].as_str() {
            Some("mlx") => {
                let offsets = zeros.zip(&scales).map(|(zero, scale)| 0.0 - scale * zero).collect();
                (GridSpec::with_offsets(bits, group_size, ScaleType::F32), offsets)
            }
            _ => (GridSpec::new(bits, group_size, symmetry, ScaleType::F16), zeros.collect()),
        };
        let linear = QuantizedLinear {
            name: "layer".to_string(),
            rows,
            columns,
            grid,
            codes: bytes("codes"),
            scales,
            zeros,
            units: Vec::new(),
        };
        let weight: Vec<f32> = numbers(case, "weight").into_iter().map(|value| value as f32).collect();
        assert_eq!(linear.dequantize(), weight);
        let format = named(case["format"].as_str().unwrap()).unwrap();
        let layer = PlannedLayer {
            spec: LinearSpec::new("layer", rows, columns),
            module: "layer".to_string(),
            change: Change::None,
            grid: linear.grid,
            original: Dtype::F16,
        };
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
    let linears = source.config().linears();
    let plan = |spec: &LinearSpec| Some(LayerPlan { bits: bits(&spec.name)?, name: spec.name.clone() });
    let plan: Vec<LayerPlan> = linears.iter().filter_map(plan).collect();
    let plan = block_on(WritePlan::new(&source, named(format).unwrap(), settings, &plan, DEFAULT_SHARD_LIMIT)).unwrap();
    let random = |(seed, spec): (usize, &LinearSpec)| {
        Some(random_on(plan.grid(&spec.name)?, &spec.name, [spec.rows, spec.columns], seed as u64))
    };
    let layers: Vec<QuantizedLinear> = linears.iter().enumerate().filter_map(random).collect();
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

/// A model in which MLX quantized one layer, with a case of make_mlx.py.
fn with_mlx_layer(module: &str, case: &Value) -> Model {
    let mut model = Model::new(|config| {
        config["quantization"] = json!({ "group_size": 32, "bits": 4 });
        config["quantization_config"] = config["quantization"].clone();
    });
    let shape = [size(case, "rows"), size(case, "columns")];
    let dtype = ["F16", "BF16", "F32"].into_iter().find(|name| case["dtype"] == **name).unwrap();
    let words = shape[1] * size(case, "bits") / 32;
    model.tensors.retain(|tensor| tensor.name != format!("{module}.weight"));
    for (part, dtype, inner) in [("weight", "U32", words), ("scales", dtype, 1), ("biases", dtype, 1)] {
        let width = if dtype.ends_with("32") { 4 } else { 2 };
        let elements = numbers(case, part).into_iter();
        let bytes = elements.flat_map(|element| (element as u32).to_le_bytes()[..width].to_vec()).collect();
        let name = format!("{module}.{part}");
        model.tensors.push(Stored { name, dtype, shape: vec![shape[0], inner], bytes });
    }
    model
}

#[test]
fn layers_and_embeddings_that_mlx_made_read_as_mlx_reads_them() {
    let cases = mlx_cases();
    for case in cases["quantized"].as_array().unwrap() {
        let (rows, columns) = (size(case, "rows"), size(case, "columns"));
        for module in ["model.layers.0.self_attn.k_proj", "model.embed_tokens", "lm_head"] {
            let model = with_mlx_layer(module, case);
            let source = block_on(model.open()).unwrap();
            assert_eq!(source.quantized_layout(), Some("MLX"));
            let name = format!("{module}.weight");
            assert_eq!(source.shape(&name).unwrap(), [rows, columns]);
            let values = block_on(source.read(&name)).unwrap();
            let ends = [&values[..columns], &values[(rows - 1) * columns..]].concat();
            for (value, expected) in ends.iter().zip(numbers(case, "first_and_last_row")) {
                assert!((f64::from(*value) - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{value} {expected}");
            }
            assert_eq!(block_on(source.read_rows(&name, 5..7)).unwrap(), values[5 * columns..7 * columns]);
            assert!(source.notes().is_empty(), "{:?}", source.notes());
        }
    }
}

#[test]
fn an_mlx_layer_whose_tensors_do_not_fit_is_refused() {
    let cases = mlx_cases();
    let case = &cases["quantized"][2];
    let module = "model.layers.0.self_attn.k_proj";
    let refused = |edit: &dyn Fn(&mut Model), part: &str| {
        let mut model = with_mlx_layer(module, case);
        edit(&mut model);
        let message = block_on(model.open()).err().unwrap().to_string();
        assert!(message.contains(part), "{message}");
    };
    let biases = format!("{module}.biases");
    refused(&|model| model.tensors.retain(|tensor| tensor.name != biases), &biases);
    let weight = format!("{module}.weight");
    refused(
        &|model| {
            let tensor = model.tensor(&weight);
            (tensor.shape, tensor.bytes) = (vec![16, 7], vec![0; 16 * 7 * 4]);
        },
        "k_proj.weight of shape [16, 7]",
    );
    refused(&|model| model.tensor(&weight).dtype = "I32", "expected U32");
    refused(&|model| model.config["quantization"]["mode"] = "nvfp4".into(), "\"mode\": \"nvfp4\"");
    refused(&|model| model.config["quantization"][module] = json!({ "mode": "mxfp4" }), "\"mode\": \"mxfp4\"");
}

/// Writes a fixture of tests/fixtures/families for MLX with no layer quantized, and opens it again.
fn for_mlx(family: &str, directory: &Path) -> (Checkpoint, Checkpoint, WritePlan) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    let source = block_on(Checkpoint::open(&folder)).unwrap();
    let plan = WritePlan::new(&source, named("mlx").unwrap(), settings(4, None, true), &[], 1 << 30);
    let plan = block_on(plan).unwrap();
    let out = directory.join(family);
    let sink = DirectorySink::new(&out, Existing::Refuse, None).unwrap();
    block_on(CheckpointWriter::new(&source, plan.clone(), Box::new(sink)).unwrap().finish()).unwrap();
    let read = block_on(Checkpoint::open(&out)).unwrap();
    (source, read, plan)
}

#[test]
fn mlx_files_have_the_names_that_mlx_lm_looks_for_and_read_back() {
    let home = tempfile::tempdir().unwrap();
    let wrapper = "language_model.model.";
    let families = [
        ("gemma3-wrapper", wrapper),
        ("gemma4-wrapper", wrapper),
        ("mistral3-wrapper", wrapper),
        ("muse_glimmer", wrapper),
        ("gpt2", "model."),
        ("llama", "model."),
        ("gemma3", "model."),
    ];
    for (family, prefix) in families {
        let (source, read, _) = for_mlx(family, home.path());
        let names = |model: &Checkpoint| model.config().expected_tensors().into_iter().map(|(name, _)| name);
        let mut inside = 0;
        for (before, after) in names(&source).zip(names(&read)) {
            inside += usize::from(after.starts_with(prefix));
            assert_eq!(read.dtype(&after).unwrap(), source.float(), "{family}, {after}");
            let values = [block_on(source.read(&before)).unwrap(), block_on(read.read(&after)).unwrap()];
            assert!(values[0] == values[1], "{family}, {before} and {after}");
        }
        let head = usize::from(!read.config().tie_word_embeddings);
        assert!(inside + head >= names(&read).count(), "{family}: {inside}");
        assert_eq!(read.config().ropes, source.config().ropes);
    }
}

#[test]
fn mlx_files_state_two_tables_of_rope_in_the_older_form_too() {
    let home = tempfile::tempdir().unwrap();
    for (family, local, scaling) in [
        ("gemma3", Some(json!(100.0)), json!({ "factor": 2.5, "rope_type": "linear" })),
        (
            "olmo3",
            None,
            json!({
                "attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0,
                "original_max_position_embeddings": 64, "rope_type": "yarn",
            }),
        ),
    ] {
        let (source, read, _) = for_mlx(family, home.path());
        let config = read.raw_config();
        assert_eq!(config["rope_theta"], 10000.0, "{family}");
        assert_eq!(config.get("rope_local_base_freq"), local.as_ref(), "{family}");
        assert_eq!(config["rope_scaling"], scaling, "{family}");
        assert_eq!(config["rope_parameters"], source.raw_config()["rope_parameters"]);
        assert_eq!(read.config().ropes, source.config().ropes);
    }
}

#[test]
fn what_mlx_lm_does_not_load_or_compute_is_said() {
    let home = tempfile::tempdir().unwrap();
    let notes = |family: &str| for_mlx(family, home.path()).2.notes().join("; ");
    assert_eq!(notes("llama"), "");
    assert!(notes("arcee").contains("no model of the type arcee"));
    assert!(notes("mistral").contains("window of mistral and computes something else after 8 tokens"));
}

fn settings(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantizationSettings {
    QuantizationSettings { bits, group_size, symmetric, mixture: None, damping: 0.01 }
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
        if group_size.is_some() {
            for bits in [2, 3, 4, 8] {
                let config = round_trip("mlx", settings(bits, group_size, symmetric), |_| Some(bits));
                let mut expected = json!({ "group_size": 32, "bits": bits, "mode": "affine", "lm_head": false });
                assert_eq!(config["quantization"], expected);
                assert_eq!(config["quantization_config"], expected.take());
            }
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
    let config = round_trip("mlx", settings(3, Some(32), false), bits);
    let layer = |name: &str| &config["quantization"][format!("model.layers.1.{name}")];
    assert_eq!(layer("mlp.down_proj"), false);
    assert_eq!(*layer("self_attn.q_proj"), json!({ "group_size": 32, "bits": 8 }));
    assert_eq!(*layer("self_attn.k_proj"), Value::Null);
    let config = round_trip("awq", settings(4, Some(32), false), |name| bits(name).map(|_| 4));
    let kept = config["quantization_config"]["modules_to_not_convert"].as_array().unwrap().clone();
    assert_eq!(kept.len(), 1 + 8, "{kept:?}");
}

#[test]
fn a_grid_that_a_format_cannot_store_is_refused_in_a_sentence() {
    let grid = |format: &str, rows, columns, settings: QuantizationSettings| -> Result<()> {
        let linear = LinearSpec::new("layer", rows, columns);
        named(format)
            .unwrap()
            .grid(&linear, wish(settings.bits, settings.group_size.unwrap_or(columns), settings.symmetric))
            .map(|_| ())
    };
    let refused = |result: Result<()>, part: &str| assert!(result.unwrap_err().to_string().contains(part), "{part}");
    refused(grid("awq", 64, 64, settings(3, Some(32), false)), "4, as the AWQ format has it");
    refused(grid("awq", 20, 64, settings(4, Some(32), false)), "a multiple of 8");
    refused(grid("awq", 64, 96, settings(4, Some(64), false)), "a group size that divides them");
    refused(grid("compressed-tensors", 5, 96, settings(3, Some(64), false)), "a group size that divides them");
    assert!(grid("compressed-tensors", 5, 7, settings(3, None, false)).is_ok());
    refused(grid("mlx", 5, 64, settings(7, Some(32), false)), "2, 3, 4, 5, 6 or 8");
    refused(grid("mlx", 5, 576, settings(4, Some(128), false)), "128 for the 576 inputs of layer");
    refused(grid("mlx", 5, 576, settings(4, Some(128), false)), "choose group_size 64");
    refused(grid("mlx", 5, 96, settings(4, None, false)), "choose group_size 32");
    refused(grid("mlx", 5, 80, settings(4, Some(16), false)), "leave the layer out with skip");
    assert!([5, 6].iter().all(|&bits| grid("mlx", 5, 64, settings(bits, None, true)).is_ok()));
}

#[test]
fn every_format_has_a_name_of_its_own() {
    let mut names: Vec<&str> = FORMATS.iter().map(|format| format.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FORMATS.len());
}
