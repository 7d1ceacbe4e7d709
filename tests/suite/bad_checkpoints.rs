//! Every way in which a checkpoint can be unusable is told in one sentence that names the file, and leaves nothing behind.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::small_model::{Model, Stored, open, random_layer, safetensors_file, wish, with_header};
use aquatint::checkpoint::formats::{float::Float, gptq::Gptq};
use aquatint::checkpoint::{
    Checkpoint, CheckpointWriter, DirectorySink, Existing, Format, LayerPlan, QuantizationSettings, Sink, WritePlan,
};
use aquatint::family::LinearSpec;
use aquatint::{Error, Result};
use futures::future::LocalBoxFuture;
use pollster::block_on;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Checks that `result` is an error of one line that contains all `parts`.
#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) {
    let message = result.err().expect("an error").to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

fn with_weights(weights: Vec<u8>) -> Result<Checkpoint> {
    let config = Model::new(|_| {}).config.to_string().into();
    block_on(open(vec![("config.json", config), ("model.safetensors", weights)]))
}

fn with_config(config: &str) -> Result<Checkpoint> {
    let weights = Model::new(|_| {}).weights();
    block_on(open(vec![("config.json", config.into()), ("model.safetensors", weights)]))
}

/// A header of one tensor before `data`.
fn one_tensor(entry: Value, data: &[u8]) -> Vec<u8> {
    with_header(&json!({ "model.norm.weight": entry }).to_string(), data)
}

#[test]
fn a_missing_or_malformed_config_is_named() {
    let weights = Model::new(|_| {}).weights();
    let missing = block_on(open(vec![("model.safetensors", weights)]));
    refused(missing, &["model/config.json", "no such file", "give the directory of a model"]);
    refused(with_config("{\"hidden_size\": 32"), &["model/config.json", "not JSON", "line 1"]);
    refused(with_config("[1, 2]"), &["model/config.json", "no object"]);
    refused(block_on(Checkpoint::open(Path::new("no/such/model"))), &["no/such/model", "cannot read", "config.json"]);
}

#[test]
fn an_unknown_architecture_lists_the_supported_ones() {
    let mut config = Model::new(|_| {}).config;
    config["architectures"] = json!(["MambaForCausalLM"]);
    let supported = ["Llama", "Mistral", "Gemma 3", "GPT-J"];
    refused(with_config(&config.to_string()), &[&["MambaForCausalLM"], &supported[..]].concat());
}

#[test]
fn shapes_and_names_must_match_the_config() {
    let mut model = Model::new(|_| {});
    model.tensor("model.layers.0.mlp.up_proj.weight").shape = vec![32, 64];
    refused(block_on(model.open()), &["model/model.safetensors", "mlp.up_proj", "[32, 64]", "[64, 32]", "config.json"]);
    model.tensors.retain(|tensor| !tensor.name.contains("up_proj"));
    refused(block_on(model.open()), &["no tensor model.layers.0.mlp.up_proj.weight"]);
    let mut model = Model::new(|_| {});
    let norm = model.tensor("model.norm.weight");
    (norm.dtype, norm.bytes) = ("I8", vec![1; 32]);
    refused(block_on(model.open()), &["model.norm.weight", "I8", "F32, F16 or BF16"]);
}

#[test]
fn truncated_files_are_recognised_at_any_length() {
    let whole = Model::new(|_| {}).weights();
    assert!(with_weights(whole.clone()).is_ok());
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        refused(with_weights(whole[..length].to_vec()), &["model/model.safetensors", "truncated or damaged"]);
    }
}

#[test]
fn a_lying_header_is_not_believed() {
    let whole = Model::new(|_| {}).weights();
    for length in [u64::MAX, 100_000_001, whole.len() as u64 - 7] {
        let lying = [&length.to_le_bytes(), &whole[8..]].concat();
        refused(with_weights(lying), &["model.safetensors", &format!("a header of {length} bytes")]);
    }
    refused(with_weights(with_header("{\"a\": ", &[])), &["cannot be read"]);
    refused(with_weights(with_header("[]", &[])), &["cannot be read"]);
    refused(with_weights(one_tensor(json!({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}), &[0; 4])), &["F99"]);
    for offsets in [[0, 8], [4, 0], [0, u64::MAX]] {
        let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": offsets});
        refused(with_weights(one_tensor(entry, &[0; 4])), &["model.norm.weight at bytes", "inside the file"]);
    }
    for shape in [vec![2], vec![0], vec![u64::MAX, 4], vec![1 << 62]] {
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [0, 4]});
        refused(with_weights(one_tensor(entry, &[0; 4])), &["4 bytes for tensor model.norm.weight"]);
    }
}

#[test]
fn tensors_that_overlap_or_come_twice_are_refused() {
    let entry = r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    let next = r#"{"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}"#;
    let overlap = with_header(&format!(r#"{{"a": {entry}, "b": {next}}}"#), &[0; 12]);
    refused(with_weights(overlap), &["tensors a and b in the same bytes"]);
    let twice = with_header(&format!(r#"{{"a": {entry}, "a": {next}}}"#), &[0; 12]);
    refused(with_weights(twice), &["tensor a twice"]);
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let model = Model::new(|_| {});
    let (first, second) = model.tensors.split_at(4);
    let shards = |map: Value| {
        let index = json!({ "weight_map": map }).to_string().into();
        let one = ("one.safetensors", safetensors_file(first.iter()));
        let two = ("two.safetensors", safetensors_file(second.iter()));
        vec![("config.json", model.config.to_string().into()), ("model.safetensors.index.json", index), one, two]
    };
    let place = |tensors: &[Stored], file: &str| -> Vec<(String, Value)> {
        tensors.iter().map(|tensor| (tensor.name.clone(), file.into())).collect()
    };
    let good: Value = place(first, "one.safetensors").into_iter().chain(place(second, "two.safetensors")).collect();
    assert!(block_on(open(shards(good.clone()))).is_ok());

    let mut absent = good.clone();
    absent["model.norm.weight"] = "three.safetensors".into();
    refused(block_on(open(shards(absent))), &["index.json", "model.norm.weight", "three.safetensors", "not there"]);
    let mut wrong = good.clone();
    wrong["model.norm.weight"] = "one.safetensors".into();
    refused(block_on(open(shards(wrong))), &["index.json", "model.norm.weight", "one.safetensors", "lacks it"]);
    let mut unknown = good;
    unknown["model.extra"] = "one.safetensors".into();
    refused(block_on(open(shards(unknown))), &["index.json", "model.extra"]);
    refused(block_on(open(shards(json!(3)))), &["index.json", "weight_map"]);

    let config = || ("config.json", model.config.to_string().into());
    let stray = safetensors_file(first.iter());
    let both = vec![config(), ("a.safetensors", model.weights()), ("b.safetensors", stray)];
    refused(block_on(open(both)), &["model/b.safetensors", "a.safetensors holds too"]);
    refused(block_on(open(vec![config()])), &["no .safetensors file"]);
}

#[test]
fn a_value_that_is_not_finite_is_found_when_its_tensor_is_read() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut model = Model::new(|_| {});
        model.tensor("model.norm.weight").bytes[120..124].copy_from_slice(&bad.to_le_bytes());
        let checkpoint = block_on(model.open()).unwrap();
        let result = block_on(checkpoint.read("model.norm.weight"));
        assert!(matches!(result, Err(Error::NotFinite { .. })));
        refused(result, &["model/model.safetensors", "model.norm.weight", "NaN or infinite"]);
        assert!(block_on(checkpoint.read_rows("model.norm.weight", 0..30)).is_ok());
        assert!(block_on(checkpoint.read_rows("model.norm.weight", 30..31)).is_err());
    }
}

#[test]
fn a_group_size_or_shape_that_the_format_cannot_store_is_refused_before_any_work() {
    let storable = |name: &str, rows, columns, bits, group_size| {
        let linear = LinearSpec::new(name, rows, columns);
        Gptq.grid(&linear, wish(bits, group_size, true))
    };
    assert!(storable("layer", 96, 576, 4, 64).is_ok());
    refused(storable("layer", 96, 576, 4, 128), &["group_size: ", "128", "576 inputs of layer", "group_size 64"]);
    refused(storable("layer", 96, 100, 8, 128), &["choose group_size -1"]);
    refused(storable("layer", 96, 64, 4, 0), &["group_size: "]);
    refused(storable("layer", 96, 96, 5, 32), &["bits: found 5", "2, 3, 4 or 8"]);
    refused(
        storable("layer", 96, 104, 3, 104),
        &["layer", "104 inputs at 3 bits", "32-bit words", "choose other bits, or format float"],
    );
    refused(storable("layer", 36, 96, 4, 96), &["36 outputs at 4 bits"]);

    let source = block_on(Model::new(|_| {}).open()).unwrap();
    let settings =
        QuantizationSettings { bits: 4, group_size: Some(48), symmetric: true, mixture: None, damping: 0.01 };
    let linears = LayerPlan::all(source.config(), settings.bits);
    let plan = block_on(WritePlan::new(&source, &Gptq, settings, &linears, 1 << 30));
    refused(plan, &["group_size: ", "48", "model.layers.0.self_attn"]);
    let plan = block_on(WritePlan::new(&source, &Float, settings, &linears, 1 << 30));
    assert!(plan.is_ok(), "float can store any group size");
}

#[test]
fn quantization_that_no_format_reads_is_refused() {
    let open = |description: Value| {
        let mut config = Model::new(|_| {}).config;
        config["quantization_config"] = description;
        with_config(&config.to_string())
    };
    let readable = "float weights, GPTQ, compressed-tensors, AWQ, MLX, FP8 or MXFP4";
    for (method, content) in [("bitsandbytes", "4 or 8 bits"), ("hqq", "HQQ"), ("own", "")] {
        let found = format!("weights quantized with \"{method}\"");
        let expected = ["model/config.json", &found, content, readable, "original, unquantized model"];
        refused(open(json!({"quant_method": method})), &expected);
    }
    for format in ["int-quantized", "nvfp4-pack-quantized"] {
        let found = format!("compressed-tensors in its format \"{format}\"");
        let description = json!({"quant_method": "compressed-tensors", "format": format});
        refused(open(description), &["model/config.json", &found, readable, "original, unquantized model"]);
    }
    let old = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"});
    refused(open(old), &["\"version\": \"gemv\"", "gemm"]);
    let group = json!({"weights": {"num_bits": 9, "type": "int"}});
    let groups =
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}});
    refused(open(groups), &["\"g\"", "1 to 8"]);
    let mut config = Model::new(|_| {}).config;
    config["quantization"] = json!({"group_size": 32, "bits": 4, "mode": "mxfp4"});
    config["quantization_config"] = config["quantization"].clone();
    refused(with_config(&config.to_string()), &["\"mode\": \"mxfp4\"", "\"affine\""]);
    refused(open(json!([4])), &["no JSON object", readable]);
    refused(open(json!({"quant_method": 4})), &["\"quant_method\": 4", "a string"]);
    refused(open(json!({"quant_method": "gptq", "bits": 5})), &["model/config.json", "\"bits\": 5"]);
    assert!(open(Value::Null).is_ok());
}

#[test]
fn a_tensor_that_nothing_uses_is_named() {
    let mut model = Model::new(|_| {});
    model.tensors.push(Stored::f32("model.layers.0.self_attn.sinks", &[2], &[0.0; 2]));
    refused(block_on(model.open()), &["tensor model.layers.0.self_attn.sinks, for which", "config.json that belongs"]);
    model.tensors.push(Stored::f32("model.layers.1.mlp.up_proj.weight", &[2], &[0.0; 2]));
    refused(block_on(model.open()), &["tensor model.layers.0.self_attn.sinks and 1 more, for which"]);
    // A bias that config.json does not mention changes the model, unless it is zero.
    let bias = "model.layers.0.self_attn.q_proj.bias";
    for (value, good) in [(0.0, true), (0.5, false)] {
        let mut model = Model::new(|_| {});
        model.tensors.push(Stored::f32(bias, &[32], &[[0.0; 31].as_slice(), &[value]].concat()));
        match good {
            true => assert!(block_on(model.open()).is_ok()),
            false => refused(block_on(model.open()), &[&format!("tensor {bias}, for which")]),
        }
    }
}

#[test]
fn a_quantized_model_is_not_quantized_again_and_a_mislabelled_one_is_not_read() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let settings = QuantizationSettings { bits: 4, group_size: None, symmetric: true, mixture: None, damping: 0.01 };
    let source = block_on(Model::new(|_| {}).open()).unwrap();
    write(&source, settings, Box::new(DirectorySink::new(&out, Existing::Refuse, None).unwrap())).unwrap();
    let quantized = block_on(Checkpoint::open(&out)).unwrap();
    assert_eq!((source.quantized_layout(), quantized.quantized_layout()), (None, Some("GPTQ")));
    refused(block_on(WritePlan::new(&quantized, &Float, settings, &[], 1)), &["quantized already", "original model"]);

    let mut config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    config["quantization_config"]["checkpoint_format"] = "gptq_v2".into();
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let mislabelled = block_on(Checkpoint::open(&out)).unwrap();
    let read = block_on(mislabelled.read("model.layers.0.mlp.up_proj.weight"));
    refused(read, &["zero point 7", "gptq_v2", "8 throughout", "set checkpoint_format to gptq"]);

    config["quantization_config"]["bits"] = 8.into();
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    refused(block_on(Checkpoint::open(&out)), &["q_proj.qweight", "[4, 32]", "[8, 32]"]);
}

#[test]
fn the_output_must_lie_apart_from_the_model() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("models/llama");
    Model::new(|_| {}).save(&model);
    for out in ["models/llama", "models/llama/quantized", "models", "models/../models/llama"] {
        for existing in [Existing::Refuse, Existing::Replace] {
            let sink = DirectorySink::new(&home.path().join(out), existing, Some(&model));
            refused(sink, &["the model's own directory", "choose another out"]);
        }
    }
    assert!(DirectorySink::new(&home.path().join("models/llama-4bit"), Existing::Refuse, Some(&model)).is_ok());
    let file = home.path().join("models/llama/config.json");
    refused(DirectorySink::new(&file, Existing::Replace, None), &["found a file"]);
    assert_eq!(fs::read_dir(home.path().join("models")).unwrap().count(), 1);
}

/// A directory on a disk that is full after some bytes, or says so from the start.
struct FullDisk {
    inner: DirectorySink,
    announced: Option<u64>,
    room: usize,
    created: Rc<Cell<usize>>,
}

impl Sink for FullDisk {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn available(&self) -> io::Result<Option<u64>> {
        Ok(self.announced)
    }

    fn create<'a>(&'a mut self, file: &'a str) -> LocalBoxFuture<'a, io::Result<()>> {
        self.created.set(self.created.get() + 1);
        self.inner.create(file)
    }

    fn write<'a>(&'a mut self, chunk: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        match self.room.checked_sub(chunk.len()) {
            Some(room) => {
                self.room = room;
                self.inner.write(chunk)
            }
            None => Box::pin(async { Err(io::ErrorKind::StorageFull.into()) }),
        }
    }

    fn commit(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
        self.inner.commit()
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}

fn write(source: &Checkpoint, settings: QuantizationSettings, sink: Box<dyn Sink>) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let linears = LayerPlan::all(source.config(), settings.bits);
    let plan = block_on(WritePlan::new(source, &Gptq, settings, &linears, 1 << 30))?;
    let mut writer = CheckpointWriter::new(source, plan, sink)?;
    for spec in source.config().linears() {
        block_on(writer.put_linear(&random_layer(&mut rng, &spec, &settings).into()))?;
    }
    block_on(writer.finish())
}

#[test]
fn a_full_disk_is_noticed_before_or_during_the_work_and_the_old_files_stay() {
    let source = block_on(Model::new(|_| {}).open()).unwrap();
    let settings =
        QuantizationSettings { bits: 4, group_size: Some(32), symmetric: false, mixture: None, damping: 0.01 };
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("old"), "precious").unwrap();
    let linears = LayerPlan::all(source.config(), settings.bits);
    let bytes = block_on(WritePlan::new(&source, &Gptq, settings, &linears, 1 << 30)).unwrap().bytes();
    let full = |announced, room: u64, created: &Rc<Cell<usize>>| {
        let inner = DirectorySink::new(&out, Existing::Replace, None).unwrap();
        Box::new(FullDisk { inner, announced, room: room as usize, created: created.clone() })
    };
    let sentence = ["out: found no space left", "room for 0.0 MB", "make room, or choose another place"];
    for room in [0, 4000, 12_000, bytes - 1] {
        for (announced, touched) in [(Some(room), false), (None, true)] {
            let created = Rc::default();
            refused(write(&source, settings, full(announced, room, &created)), &sentence);
            assert_eq!(created.get() > 0, touched);
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing beside the old directory");
            assert_eq!(fs::read_to_string(out.join("old")).unwrap(), "precious");
        }
    }
    write(&source, settings, full(Some(bytes), bytes, &Rc::default())).unwrap();
    assert!(!out.join("old").exists());
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    Model::new(|_| {}).save(folder.path());
    let model = block_on(Checkpoint::open(folder.path())).unwrap();
    block_on(model.read("model.norm.weight")).unwrap();
    let weights = fs::File::options().write(true).open(folder.path().join("model.safetensors")).unwrap();
    weights.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    refused(
        block_on(model.read("model.norm.weight")),
        &["model.safetensors", "changed after the run had begun", "run again"],
    );
}
