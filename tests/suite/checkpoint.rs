//! Checkpoints: what is read from disk, what is written, and that the two agree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::common::{device_tests, recorder};
use crate::small_model::{Model, Stored, random_layer};
use aquatint::checkpoint::formats::{self, float::Float, gptq::Gptq};
use aquatint::checkpoint::{
    Checkpoint, CheckpointWriter, DEFAULT_SHARD_LIMIT, DirectorySink, Dtype, Existing, Format, LayerPlan,
    QuantizationSettings, TensorGroup, WritePlan,
};
use aquatint::device::Device;
use aquatint::stored::{DenseLinear, QuantizedLinear, StoredLinear};
use aquatint::{Error, bundled};
use half::{bf16, f16};
use pollster::block_on;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn settings(bits: u32, group_size: Option<usize>, symmetric: bool) -> QuantizationSettings {
    QuantizationSettings { bits, group_size, symmetric, mixture: None, damping: 0.01 }
}

/// How a checkpoint is written.
type As = (&'static dyn Format, QuantizationSettings);

/// As a copy of the model in which nothing is quantized.
fn unquantized() -> As {
    (&Float, settings(4, None, true))
}

fn random_layers(source: &Checkpoint, settings: &QuantizationSettings) -> Vec<QuantizedLinear> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    source.config().linears().iter().map(|spec| random_layer(&mut rng, spec, settings)).collect()
}

fn write(source: &Checkpoint, (format, settings): As, layers: &[QuantizedLinear], limit: u64, sink: DirectorySink) {
    let planned = |layer: &QuantizedLinear| LayerPlan { name: layer.name.clone(), bits: layer.grid.bits };
    let plan: Vec<LayerPlan> = layers.iter().map(planned).collect();
    let plan = block_on(WritePlan::new(source, format, settings, &plan, limit)).unwrap();
    let mut writer = CheckpointWriter::new(source, plan, Box::new(sink)).unwrap();
    for layer in layers {
        block_on(writer.put_linear(&layer.clone().into())).unwrap();
    }
    block_on(writer.finish()).unwrap();
}

fn sink(out: &Path) -> DirectorySink {
    DirectorySink::new(out, Existing::Refuse, None).unwrap()
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_bundled_model_reads_as_the_safetensors_crate_reads_it() {
    let checkpoint = block_on(bundled::checkpoint()).unwrap();
    let bytes = include_bytes!("../fixtures/tiny-llama/model.safetensors");
    let reference = SafeTensors::deserialize(bytes).unwrap();
    let expected = checkpoint.config().expected_tensors();
    assert_eq!(expected.len(), reference.names().len());
    for (name, shape) in expected {
        let view = reference.tensor(&name).unwrap();
        let values: Vec<f32> = view.data().chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        assert_eq!((view.shape(), checkpoint.shape(&name).unwrap()), (&shape[..], &shape[..]));
        assert_eq!(checkpoint.dtype(&name).unwrap(), Dtype::BF16);
        assert_eq!(block_on(checkpoint.read(&name)).unwrap(), values, "{name}");
    }
    let embedding = block_on(checkpoint.read("model.embed_tokens.weight")).unwrap();
    let rows = block_on(checkpoint.read_rows("model.embed_tokens.weight", 5..9)).unwrap();
    assert_eq!(rows, embedding[5 * 160..9 * 160]);
}

device_tests!(a_gptq_checkpoint_reads_back_exactly_at_every_width: cpu, software_gpu);
fn a_gptq_checkpoint_reads_back_exactly_at_every_width(device: Device) {
    let source = block_on(bundled::checkpoint()).unwrap();
    for bits in [2, 3, 4, 8] {
        for (symmetric, group_size) in [(true, Some(32)), (true, None), (false, Some(32)), (false, None)] {
            let settings = settings(bits, group_size, symmetric);
            let home = tempfile::tempdir().unwrap();
            let out = home.path().join("quantized");
            let layers = random_layers(&source, &settings);
            write(&source, (&Gptq, settings), &layers, DEFAULT_SHARD_LIMIT, sink(&out));
            let read = block_on(Checkpoint::open(&out)).unwrap();
            for layer in &layers {
                let name = format!("{}.weight", layer.name);
                assert!(read.is_packed(&name));
                assert_eq!(block_on(read.read(&name)).unwrap(), layer.dequantize(), "{name} {settings:?}");
            }
            let layer = &layers[5];
            let name = format!("{}.weight", layer.name);
            let mut rec = recorder(&device);
            let whole = block_on(read.load(&mut rec, &name)).unwrap();
            let rows = block_on(read.load_rows(&mut rec, &name, 3..5)).unwrap();
            assert_eq!((whole.shape(), rows.shape()), (&[layer.rows, layer.columns][..], &[2, layer.columns][..]));
            let weight = layer.dequantize();
            assert_eq!(block_on(rec.read(&whole)).unwrap(), weight, "{}", device.name());
            assert_eq!(block_on(rec.read(&rows)).unwrap(), weight[3 * layer.columns..5 * layer.columns]);
            let norm = "model.layers.3.input_layernorm.weight";
            assert_eq!(block_on(read.read(norm)).unwrap(), block_on(source.read(norm)).unwrap());
            assert_eq!(names(home.path()), BTreeSet::from(["quantized".to_owned()]));
        }
    }
}

#[test]
fn the_parts_lie_where_the_format_puts_them() {
    let source = block_on(bundled::checkpoint()).unwrap();
    let home = tempfile::tempdir().unwrap();
    for (symmetric, label) in [(true, "gptq"), (false, "gptq_v2")] {
        let settings = settings(4, Some(32), symmetric);
        let out = home.path().join(label);
        let layers = random_layers(&source, &settings);
        write(&source, (&Gptq, settings), &layers, DEFAULT_SHARD_LIMIT, sink(&out));

        let bytes = fs::read(out.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
        let layer = layers.iter().find(|layer| layer.name == "model.layers.2.mlp.up_proj").unwrap();
        let part = |suffix: &str| file.tensor(&format!("{}.{suffix}", layer.name)).unwrap();
        let word =
            |suffix: &str, i: usize| u32::from_le_bytes(part(suffix).data()[4 * i..4 * i + 4].try_into().unwrap());
        let (n, k) = (layer.rows, layer.columns);
        assert_eq!((part("qweight").dtype(), part("qweight").shape()), (Dtype::I32, &[k / 8, n][..]));
        assert_eq!((part("qzeros").dtype(), part("qzeros").shape()), (Dtype::I32, &[k / 32, n / 8][..]));
        assert_eq!((part("scales").dtype(), part("scales").shape()), (Dtype::F16, &[k / 32, n][..]));
        assert_eq!((part("g_idx").dtype(), part("g_idx").shape()), (Dtype::I32, &[k][..]));
        assert!(file.tensor(&format!("{}.weight", layer.name)).is_err());
        let (row, input) = (17, 43);
        let code = word("qweight", input / 8 * n + row) >> (4 * (input % 8)) & 15;
        assert_eq!(code, u32::from(layer.codes[row * k + input]));
        let group = input / 32;
        assert_eq!(word("g_idx", input), group as u32);
        let scale = &part("scales").data()[2 * (group * n + row)..][..2];
        assert_eq!(f16::from_le_bytes([scale[0], scale[1]]).to_f32(), layer.scales[row * (k / 32) + group]);
        if symmetric {
            assert!((0..k / 32 * n / 8).all(|i| word("qzeros", i) == 0x7777_7777));
        } else {
            let zero = word("qzeros", group * n / 8 + row / 8) >> (4 * (row % 8)) & 15;
            assert_eq!(zero as f32, layer.zeros[row * (k / 32) + group]);
        }
        let expected = json!({
            "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": symmetric, "lm_head": false,
            "checkpoint_format": label, "format": label, "pack_dtype": "int32", "true_sequential": true,
            "damp_percent": 0.01, "meta": {"quantizer": [format!("aquatint:{}", env!("CARGO_PKG_VERSION"))]},
        });
        assert_eq!(json_file(&out.join("quantize_config.json")), expected);
        assert_eq!(json_file(&out.join("config.json"))["quantization_config"], expected);
    }
}

#[test]
fn files_and_fields_of_the_model_come_along() {
    let source = block_on(bundled::checkpoint()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("new/parents/quantized");
    let settings = settings(3, None, false);
    write(&source, (&Gptq, settings), &random_layers(&source, &settings), DEFAULT_SHARD_LIMIT, sink(&out));
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&out), expected.map(str::to_owned).into());
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), include_bytes!("../fixtures/tiny-llama/tokenizer.json"));
    let config = json_file(&out.join("config.json"));
    assert_eq!(config["quantization_config"]["group_size"], -1);
    assert_eq!(config["rope_theta"], 10000.0);
    for (key, value) in source.raw_config() {
        assert_eq!(&config[key], value, "{key}");
    }
    assert!(block_on(block_on(Checkpoint::open(&out)).unwrap().tokenizer()).is_ok());
}

#[test]
fn a_directory_is_opened_with_its_shards_and_only_what_belongs_to_the_model_is_copied() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("model");
    let model = Model::new(|_| {});
    model.save(&directory);
    for kept in ["tokenizer.model", "chat_template.jinja", "LICENSE", "modeling_own.py", "merges.txt"] {
        fs::write(directory.join(kept), kept).unwrap();
    }
    for left in ["README.md", ".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json"] {
        fs::write(directory.join(left), left).unwrap();
    }
    fs::create_dir(directory.join("original.json")).unwrap();
    let source = block_on(Checkpoint::open(&directory)).unwrap();
    assert_eq!(source.directory(), Some(&*directory));
    let copied: Vec<&str> = source.sidecars().map(|file| file.name()).collect();
    assert_eq!(copied, ["LICENSE", "chat_template.jinja", "merges.txt", "modeling_own.py", "tokenizer.model"]);
    let out = home.path().join("out");
    write(&source, unquantized(), &[], 1 << 30, DirectorySink::new(&out, Existing::Refuse, Some(&directory)).unwrap());
    assert_eq!(fs::read(out.join("LICENSE")).unwrap(), b"LICENSE");
    let name = "lm_head.weight";
    let read = block_on(Checkpoint::open(&out)).unwrap();
    assert_eq!(block_on(read.read(name)).unwrap(), block_on(source.read(name)).unwrap());
}

#[test]
fn float_stores_halves_for_a_half_precision_model_and_singles_for_a_single_precision_one() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(3, Some(32), false);
    let bundled = block_on(bundled::checkpoint()).unwrap();
    let single = block_on(Model::new(|_| {}).open()).unwrap();
    for (source, dtype) in [(bundled, Dtype::F16), (single, Dtype::F32)] {
        let out = home.path().join(dtype.to_string());
        let layers = random_layers(&source, &settings);
        write(&source, (&Float, settings), &layers, DEFAULT_SHARD_LIMIT, sink(&out));
        let read = block_on(Checkpoint::open(&out)).unwrap();
        for layer in &layers {
            let name = format!("{}.weight", layer.name);
            let stored = |w: f32| if dtype == Dtype::F16 { f16::from_f32(w).to_f32() } else { w };
            let expected: Vec<f32> = layer.dequantize().into_iter().map(stored).collect();
            assert_eq!(read.dtype(&name).unwrap(), dtype);
            assert_eq!(block_on(read.read(&name)).unwrap(), expected);
        }
        assert_eq!(read.raw_config().get("quantization_config"), None);
        assert!(!out.join("quantize_config.json").exists());
    }
}

#[test]
fn f32_stores_every_weight_exactly_whatever_the_original_has() {
    let home = tempfile::tempdir().unwrap();
    let (f32, settings) = (formats::named("f32").unwrap(), settings(3, Some(32), false));
    let source = block_on(bundled::checkpoint()).unwrap();
    let mut layers: Vec<StoredLinear> = random_layers(&source, &settings).into_iter().map(Into::into).collect();
    // A weight that lies on no grid, nor among halves.
    let (name, [rows, columns]) = (layers[3].name().to_owned(), layers[3].shape());
    let weight = (0..rows * columns).map(|i| 0.3 / (1 + i) as f32).collect();
    layers[3] = StoredLinear::Dense(DenseLinear { name, rows, columns, weight });
    let plan = block_on(WritePlan::new(&source, f32, settings, &LayerPlan::all(source.config(), 3), 1 << 30)).unwrap();
    assert_eq!(plan.bits_per_weight(), 32.0);
    let out = home.path().join("out");
    let mut writer = CheckpointWriter::new(&source, plan, Box::new(sink(&out))).unwrap();
    for layer in &layers {
        block_on(writer.put_linear(layer)).unwrap();
    }
    block_on(writer.finish()).unwrap();
    let read = block_on(Checkpoint::open(&out)).unwrap();
    for layer in &layers {
        let name = format!("{}.weight", layer.name());
        assert_eq!(read.dtype(&name).unwrap(), Dtype::F32);
        assert_eq!(block_on(read.read(&name)).unwrap(), layer.dequantize(), "{name}");
    }
    assert_eq!(read.dtype("model.norm.weight").unwrap(), Dtype::BF16);
}

#[test]
fn shards_stay_below_the_limit_and_the_index_finds_everything() {
    const LIMIT: u64 = 400_000;
    let source = block_on(bundled::checkpoint()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("sharded");
    let settings = settings(8, Some(32), true);
    let layers = random_layers(&source, &settings);
    let linears = LayerPlan::all(source.config(), settings.bits);
    let plan = block_on(WritePlan::new(&source, &Gptq, settings, &linears, LIMIT)).unwrap();
    write(&source, (&Gptq, settings), &layers, LIMIT, sink(&out));
    let index = json_file(&out.join("model.safetensors.index.json"));
    let shards: BTreeSet<String> = names(&out).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3);
    let mut total = 0;
    for (position, shard) in shards.iter().enumerate() {
        assert_eq!(*shard, format!("model-{:05}-of-{:05}.safetensors", position + 1, shards.len()));
        let bytes = fs::read(out.join(shard)).unwrap();
        assert!((bytes.len() as u64) < LIMIT);
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            assert_eq!(index["weight_map"][name], shard.as_str());
            total += view.data().len();
        }
    }
    assert_eq!(index["metadata"]["total_size"], total);
    let written: u64 = names(&out).iter().map(|name| fs::metadata(out.join(name)).unwrap().len()).sum();
    assert_eq!(plan.bytes(), written);
    let read = block_on(Checkpoint::open(&out)).unwrap();
    for layer in &layers {
        assert_eq!(block_on(read.read(&format!("{}.weight", layer.name))).unwrap(), layer.dequantize());
    }
}

#[test]
fn passengers_and_biases_are_copied_but_a_tied_output_layer_is_not() {
    let mut model = Model::new(|config| {
        config["tie_word_embeddings"] = true.into();
        config["attention_bias"] = true.into();
    });
    model.tensors.push(Stored { name: "visual.odd".into(), dtype: "U8", shape: vec![3], bytes: vec![1, 2, 3] });
    model.tensors.push(Stored { name: "mtp.wide".into(), dtype: "I64", shape: vec![1], bytes: vec![9; 8] });
    let embedding = model.tensor("model.embed_tokens.weight").clone();
    let tied_bytes = embedding.bytes.len() as u64;
    model.tensors.push(Stored { name: "lm_head.weight".into(), ..embedding });
    let source = block_on(model.open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let settings = settings(4, None, true);
    write(&source, (&Gptq, settings), &random_layers(&source, &settings), 1 << 30, sink(&home.path().join("out")));
    let plan =
        block_on(WritePlan::new(&source, &Gptq, settings, &LayerPlan::all(source.config(), 4), 1 << 30)).unwrap();
    let group = |part, bytes| TensorGroup { part, tensors: 1, bytes };
    assert_eq!(plan.copied(), [group("MTP head", 8), group("vision tower", 3)]);
    assert_eq!(plan.left_out(), [group("tied output matrix", tied_bytes)]);
    let bytes = fs::read(home.path().join("out/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("visual.odd").unwrap().data(), [1, 2, 3]);
    assert_eq!(file.tensor("mtp.wide").unwrap().data(), [9; 8]);
    assert!(file.tensor("lm_head.weight").is_err());
    let bias = "model.layers.0.self_attn.o_proj.bias";
    assert_eq!(file.tensor(bias).unwrap().data(), model.tensor(bias).bytes);
    let data = bytes.as_ptr() as usize + 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for (name, view) in file.tensors() {
        let offset = view.data().as_ptr() as usize - data;
        assert!(offset.is_multiple_of(view.dtype().bitsize() / 8), "{name} at {offset}");
    }
}

#[test]
fn a_tied_output_matrix_with_numbers_of_its_own_is_refused() {
    let mut model = Model::new(|config| config["tie_word_embeddings"] = true.into());
    let embedding = model.tensor("model.embed_tokens.weight").clone();
    let mut bytes = embedding.bytes.clone();
    *bytes.last_mut().unwrap() ^= 1;
    model.tensors.push(Stored { name: "lm_head.weight".into(), bytes, ..embedding });
    let message = block_on(model.open()).err().unwrap().to_string();
    assert!(message.contains("lm_head.weight") && message.contains("tie_word_embeddings"), "{message}");
}

#[test]
fn both_forms_of_rope_are_written_whichever_is_read() {
    let scaling = json!({
        "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut parameters = scaling.as_object().unwrap().clone();
    parameters.remove("type");
    parameters.insert("rope_type".into(), "llama3".into());
    let as_scaling = Value::Object(parameters.clone());
    parameters.insert("rope_theta".into(), 500000.0.into());
    let parameters = Value::Object(parameters);
    let old = Model::new(|config| {
        config["rope_theta"] = 500000.0.into();
        config["rope_scaling"] = scaling;
    });
    let new = Model::new(|config| {
        config.as_object_mut().unwrap().remove("rope_theta");
        config["rope_parameters"] = parameters.clone();
    });
    let home = tempfile::tempdir().unwrap();
    for (form, model) in [("old", old), ("new", new)] {
        let source = block_on(model.open()).unwrap();
        let out = home.path().join(form);
        write(&source, unquantized(), &[], 1 << 30, sink(&out));
        let config = json_file(&out.join("config.json"));
        assert_eq!(config["rope_theta"], 500000.0, "{form}");
        assert_eq!(config["rope_parameters"], parameters, "{form}");
        if form == "new" {
            assert_eq!(config["rope_scaling"], as_scaling);
        }
        assert_eq!(block_on(Checkpoint::open(&out)).unwrap().config(), source.config());
    }
}

#[test]
fn a_share_of_the_head_is_written_where_both_forms_look_for_it() {
    let home = tempfile::tempdir().unwrap();
    for place in ["rope_parameters", "top level"] {
        let model = Model::new(|config| {
            config["partial_rotary_factor"] = Value::Null;
            match place {
                "top level" => config["partial_rotary_factor"] = 1.0.into(),
                _ => config["rope_parameters"] = json!({"rope_type": "default", "partial_rotary_factor": 1.0}),
            }
        });
        let source = block_on(model.open()).unwrap();
        let out = home.path().join(place);
        write(&source, unquantized(), &[], 1 << 30, sink(&out));
        let config = json_file(&out.join("config.json"));
        assert_eq!(config["partial_rotary_factor"], 1.0, "{place}");
        assert_eq!(config["rope_parameters"]["partial_rotary_factor"], 1.0, "{place}");
        assert_eq!(config["rope_scaling"], Value::Null, "{place}");
    }
}

#[test]
fn the_config_of_a_wrapper_keeps_its_shape() {
    let home = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    for (family, tied) in [("mistral3-wrapper", false), ("gemma3-wrapper", true)] {
        let source = block_on(Checkpoint::open(&folder.join(family))).unwrap();
        assert_eq!(source.config().tie_word_embeddings, tied);
        let (settings, out) = (settings(8, None, true), home.path().join(family));
        let head = random_layer(&mut ChaCha8Rng::seed_from_u64(9), &source.config().head_linear(), &settings);
        write(&source, (&Float, settings), std::slice::from_ref(&head), 1 << 30, sink(&out));
        let mut expected = Value::Object(source.raw_config().clone());
        expected["tie_word_embeddings"] = false.into();
        let text = &mut expected["text_config"];
        text["tie_word_embeddings"] = false.into();
        // The other form of RoPE. Gemma's table for each kind of layer has none.
        if !tied {
            let mut scaling = text["rope_parameters"].clone();
            text["rope_theta"] = scaling.as_object_mut().unwrap().remove("rope_theta").unwrap();
            text["rope_scaling"] = scaling;
        }
        assert_eq!(json_file(&out.join("config.json")), expected);
        let read = block_on(Checkpoint::open(&out)).unwrap();
        assert_eq!(read.config().ropes, source.config().ropes);
        assert_eq!(block_on(read.read(&read.config().output_weight())).unwrap(), head.dequantize());
    }
}

#[test]
fn layers_left_out_are_listed_for_the_client() {
    let source = block_on(bundled::checkpoint()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let settings = settings(4, None, true);
    let mut layers = random_layers(&source, &settings);
    layers.retain(|layer| layer.name.ends_with("up_proj") || layer.name.ends_with("q_proj"));
    let out = home.path().join("partial");
    write(&source, (&Gptq, settings), &layers, 1 << 30, sink(&out));
    let config = json_file(&out.join("quantize_config.json"));
    assert_eq!(config["modules_in_block_to_quantize"], json!([["self_attn.q_proj", "mlp.up_proj"]]));
    let read = block_on(Checkpoint::open(&out)).unwrap();
    assert!(!read.is_packed("model.layers.0.mlp.down_proj.weight"));
    assert!(config.get("dynamic").is_none());
}

#[test]
fn bits_of_their_own_and_a_layer_left_out_somewhere_become_rules() {
    let source = block_on(bundled::checkpoint()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let settings = settings(3, Some(32), false);
    let at = |bits| QuantizationSettings { bits, ..settings };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut layers: Vec<QuantizedLinear> = Vec::new();
    for spec in source.config().linears() {
        let bits = match spec.name.as_str() {
            "model.layers.1.mlp.gate_proj" => continue,
            "model.layers.2.self_attn.o_proj" => 8,
            name if name.ends_with("down_proj") => 4,
            _ => 3,
        };
        layers.push(random_layer(&mut rng, &spec, &at(bits)));
    }
    layers.push(random_layer(&mut rng, &source.config().head_linear(), &at(2)));
    let out = home.path().join("mixed");
    write(&source, (&Gptq, settings), &layers, 1 << 30, sink(&out));
    let config = json_file(&out.join("config.json"));
    let quantization = &config["quantization_config"];
    assert_eq!(
        quantization["dynamic"],
        json!({
            r"+:^model\.layers\.2\.self_attn\.o_proj$": { "bits": 8 },
            r"-:^model\.layers\.1\.mlp\.gate_proj$": {},
            r"+:^model\.layers\.\d+\.mlp\.down_proj$": { "bits": 4 },
            "+:^lm_head$": { "bits": 2 },
        })
    );
    assert_eq!((&quantization["lm_head"], &config["tie_word_embeddings"]), (&json!(true), &json!(false)));
    let read = block_on(Checkpoint::open(&out)).unwrap();
    assert!(!read.is_packed("model.layers.1.mlp.gate_proj.weight"));
    assert!(!read.is_packed("model.embed_tokens.weight"));
    for layer in &layers {
        assert_eq!(
            block_on(read.read(&format!("{}.weight", layer.name))).unwrap(),
            layer.dequantize(),
            "{}",
            layer.name
        );
    }
}

#[test]
fn a_foreign_checkpoint_with_act_order_reads_through_g_idx() {
    // One v1 layer at 8 bits written by hand: W[n, k] = s[g(k), n] · (q − z), groups of 16 dealt out alternately.
    let mut model = Model::new(|config| {
        config["quantization_config"] = json!({
            "quant_method": "gptq", "bits": 8, "group_size": 16, "sym": false, "desc_act": true,
        });
    });
    let name = "model.layers.0.self_attn.k_proj";
    model.tensors.retain(|tensor| tensor.name != format!("{name}.weight"));
    let (rows, columns) = (16, 32);
    let code = |n: usize, k: usize| (n * 13 + k * 7) as u8;
    let zero = |g: usize, n: usize| (1 + 3 * g + n) as u8;
    let scale = |g: usize, n: usize| (g + 1) as f32 * 0.5 + n as f32 * 0.25;
    let mut qweight = vec![0u8; rows * columns];
    for (n, k) in (0..rows).flat_map(|n| (0..columns).map(move |k| (n, k))) {
        qweight[4 * (k / 4 * rows + n) + k % 4] = code(n, k);
    }
    let cells = || (0..2).flat_map(|g| (0..rows).map(move |n| (g, n)));
    let stored = |suffix: &str, dtype, shape: [usize; 2], bytes| {
        let shape = shape.into_iter().filter(|&n| n > 0).collect();
        Stored { name: format!("{name}.{suffix}"), dtype, shape, bytes }
    };
    let qzeros = cells().map(|(g, n)| zero(g, n) - 1).collect();
    let scales = cells().flat_map(|(g, n)| f16::from_f32(scale(g, n)).to_le_bytes()).collect();
    let g_idx = (0..columns as u32).flat_map(|k| (k % 2).to_le_bytes()).collect();
    model.tensors.push(stored("qweight", "I32", [columns / 4, rows], qweight));
    model.tensors.push(stored("qzeros", "I32", [2, rows / 4], qzeros));
    model.tensors.push(stored("scales", "F16", [2, rows], scales));
    model.tensors.push(stored("g_idx", "I32", [columns, 0], g_idx));
    let weight = block_on(block_on(model.open()).unwrap().read(&format!("{name}.weight"))).unwrap();
    for (n, k) in (0..rows).flat_map(|n| (0..columns).map(move |k| (n, k))) {
        let expected = scale(k % 2, n) * (f32::from(code(n, k)) - f32::from(zero(k % 2, n)));
        assert_eq!(weight[n * columns + k], expected, "row {n}, input {k}");
    }
}

#[test]
fn an_existing_directory_is_replaced_only_when_the_new_one_is_whole() {
    let source = block_on(Model::new(|_| {}).open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("old"), "precious").unwrap();
    let refused = DirectorySink::new(&out, Existing::Refuse, None).unwrap_err().to_string();
    assert!(refused.contains("files in it") && refused.contains("Existing::Replace"), "{refused}");

    let settings = settings(4, None, true);
    let layers = random_layers(&source, &settings);
    let start = || {
        let sink = DirectorySink::new(&out, Existing::Replace, None).unwrap();
        let linears = LayerPlan::all(source.config(), settings.bits);
        let plan = block_on(WritePlan::new(&source, &Gptq, settings, &linears, 1 << 30)).unwrap();
        CheckpointWriter::new(&source, plan, Box::new(sink)).unwrap()
    };
    let mut abandoned = start();
    block_on(abandoned.put_linear(&layers[0].clone().into())).unwrap();
    assert_eq!(names(home.path()).len(), 2, "a temporary directory lies beside");
    drop(abandoned);
    assert_eq!(names(home.path()), BTreeSet::from(["out".to_owned()]));
    assert_eq!(names(&out), BTreeSet::from(["old".to_owned()]));

    let mut writer = start();
    for layer in &layers {
        assert!(out.join("old").exists());
        block_on(writer.put_linear(&layer.clone().into())).unwrap();
    }
    block_on(writer.finish()).unwrap();
    assert!(!out.join("old").exists() && out.join("config.json").exists());
    assert_eq!(names(home.path()), BTreeSet::from(["out".to_owned()]));
}

#[test]
fn a_layer_out_of_turn_or_missing_is_a_bug_of_the_caller() {
    let source = block_on(Model::new(|_| {}).open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let settings = settings(4, None, true);
    let layers = random_layers(&source, &settings);
    let linears = LayerPlan::all(source.config(), settings.bits);
    let plan = || block_on(WritePlan::new(&source, &Gptq, settings, &linears, 1 << 30)).unwrap();
    let out = home.path().join("a/b/out");
    let mut writer = CheckpointWriter::new(&source, plan(), Box::new(sink(&out))).unwrap();
    assert!(matches!(block_on(writer.put_linear(&layers[1].clone().into())), Err(Error::Shape { .. })));
    block_on(writer.put_linear(&layers[0].clone().into())).unwrap();
    assert!(matches!(block_on(writer.finish()), Err(Error::Shape { .. })));
    assert_eq!(names(home.path()), BTreeSet::new(), "created parents are gone too");

    let mut other = layers[0].clone();
    other.zeros[0] = 7.0;
    let mut writer = CheckpointWriter::new(&source, plan(), Box::new(sink(&out))).unwrap();
    assert!(
        matches!(block_on(writer.put_linear(&other.into())), Err(Error::Shape { .. })),
        "symmetric, but with a zero of 7"
    );
}
