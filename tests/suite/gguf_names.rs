//! What llama.cpp calls tensors and settings: names and keys against those of its Python package
//! (tests/fixtures/formats/gguf_names.py), and every model of tests/fixtures/families through a file and back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aquatint::Checkpoint;
use aquatint::checkpoint::gguf::architectures::{Contents, Mapping, RowOrder, VALUES_READ, config_of};
use aquatint::checkpoint::gguf::metadata::{Metadata, Value};
use aquatint::device::Device;
use aquatint::engine::network::Network;
use aquatint::eval::logits;
use aquatint::family::{Columns, ModelConfig};
use pollster::block_on;
use serde_json::{Map, Value as Json, json};

use crate::common::{recorder, relative_error};
use crate::small_model::{Stored, open, safetensors_file};

/// The fixtures of families that llama.cpp does not know.
const UNKNOWN: [&str; 4] = ["gptj", "helium", "opt", "opt-350m"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The names of all fixtures of families that llama.cpp knows.
fn families() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures().join("families")).unwrap().map(|entry| entry.unwrap().path());
    let fixtures = folders.filter(|path| path.join("config.json").exists());
    let names = fixtures.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<String> = names.filter(|name| !UNKNOWN.contains(&name.as_str())).collect();
    names.sort();
    names
}

fn config(family: &str) -> Json {
    let text = std::fs::read_to_string(fixtures().join("families").join(family).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The model of a fixture, with the settings that llama.cpp has no keys for set to what it computes.
fn family(name: &str) -> Checkpoint {
    let mut config = config(name);
    let keys = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
    match name {
        "gemma2" | "gemma3" | "gemma3-wrapper" => keys["query_pre_attn_scalar"] = keys["head_dim"].clone(),
        "muse_glimmer" => keys["post_norm_eps"] = json!(1e-8),
        "llama-yarn-mscale" => {
            keys["rope_parameters"] = json!({
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5,
                "original_max_position_embeddings": 64,
            });
        }
        "smollm3" => {
            keys["no_rope_layers"] = json!([1, 1, 1]);
            keys["use_sliding_window"] = json!(false);
            keys["layer_types"] = json!(["full_attention", "full_attention", "full_attention"]);
        }
        // Its norms of heads belong to models of 64 layers.
        "cohere-qk" => keys["use_qk_norm"] = json!(false),
        _ => {}
    }
    let weights = std::fs::read(fixtures().join("families").join(name).join("model.safetensors")).unwrap();
    let weights = if name == "cohere-qk" { without_norms_of_heads(&weights) } else { weights };
    block_on(open(vec![("config.json", config.to_string().into()), ("model.safetensors", weights)])).unwrap()
}

fn without_norms_of_heads(file: &[u8]) -> Vec<u8> {
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    let kept = file.tensors().into_iter().filter(|(name, _)| !name.contains("q_norm") && !name.contains("k_norm"));
    let kept: BTreeMap<String, _> = kept.collect();
    safetensors::serialize(kept, None).unwrap()
}

fn mapping(model: &ModelConfig) -> Mapping {
    Mapping::of_model("model", model).unwrap()
}

/// A GGUF file in memory: its metadata, and the shape and the numbers of every tensor.
struct File {
    metadata: Metadata,
    shapes: BTreeMap<String, Vec<usize>>,
    values: BTreeMap<String, Vec<f32>>,
}

impl File {
    /// The file of a model.
    fn of(model: &Checkpoint) -> Self {
        let mapping = mapping(model.config());
        let (mut shapes, mut values) = (BTreeMap::new(), BTreeMap::new());
        for tensor in &mapping.tensors {
            let read = |source: &String| block_on(model.read(source)).unwrap();
            let of_model: Vec<f32> = tensor.sources.iter().flat_map(read).collect();
            let width = of_model.len() / tensor.shape[0];
            let row = |row: usize| of_model[row * width..][..width].iter().map(|value| value + tensor.added);
            shapes.insert(tensor.name.clone(), tensor.shape.clone());
            values
                .insert(tensor.name.clone(), tensor.rows.sources(tensor.shape[0]).into_iter().flat_map(row).collect());
        }
        for added in mapping.added {
            shapes.insert(added.name.clone(), vec![added.values.len()]);
            values.insert(added.name, added.values);
        }
        Self { metadata: mapping.metadata, shapes, values }
    }

    fn config(&self) -> Map<String, Json> {
        let values = self.values.iter().filter(|(name, _)| VALUES_READ.contains(&name.as_str()));
        let values = values.map(|(name, values)| (name.clone(), values.clone())).collect();
        let contents =
            Contents { subject: "model.gguf", metadata: &self.metadata, shapes: &self.shapes, values: &values };
        config_of(&contents).unwrap()
    }

    /// The model in the file.
    fn checkpoint(&self) -> Checkpoint {
        let config = Json::Object(self.config());
        let model = ModelConfig::from_value(&config, "config.json").unwrap();
        let (mapping, transposed) = (mapping(&model), model.transposed_weights());
        let stored = model.expected_tensors().into_iter().map(|(name, shape)| {
            let (tensor, part) = mapping.holder(&name).unwrap();
            let values = &self.values[&tensor.name];
            let width = values.len() / tensor.shape[0];
            let row = |row: usize| values[row * width..][..width].iter().map(|value| value - tensor.added);
            let all: Vec<f32> = tensor.rows.targets(tensor.shape[0]).into_iter().flat_map(row).collect();
            let own = all.len() / tensor.sources.len();
            let own = &all[part * own..][..own];
            match (transposed.contains(&name), &shape[..]) {
                (true, &[rows, columns]) => {
                    let turned = (0..columns).flat_map(|c| (0..rows).map(move |r| own[r * columns + c]));
                    Stored::f32(&name, &[columns, rows], &turned.collect::<Vec<_>>())
                }
                _ => Stored::f32(&name, &shape, own),
            }
        });
        let stored: Vec<Stored> = stored.collect();
        let files =
            vec![("config.json", config.to_string().into()), ("model.safetensors", safetensors_file(stored.iter()))];
        block_on(open(files)).unwrap()
    }
}

#[test]
fn tensors_have_the_names_of_llama_cpp() {
    let text = std::fs::read_to_string(fixtures().join("formats/gguf_names.json")).unwrap();
    let known: Json = serde_json::from_str(&text).unwrap();
    for name in families() {
        let model = family(&name);
        let mapping = mapping(model.config());
        let names: BTreeSet<&str> = mapping.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names.len(), mapping.tensors.len(), "{name}");
        assert!(names.iter().all(|name| name.len() < 64), "{name}");
        for (tensor, shape) in model.config().expected_tensors() {
            let (holder, _) = mapping.holder(&tensor).unwrap();
            let elements: usize = shape.iter().product();
            assert_eq!(holder.shape.iter().product::<usize>(), elements * holder.sources.len(), "{name}, {tensor}");
            let is_float = tensor.ends_with(".bias") || shape.len() < 2 || tensor.contains("norm");
            assert_eq!(holder.is_float(), is_float || tensor.contains("wpe"), "{name}, {tensor}");
        }
        // The Python package does not know the youngest family yet.
        let Some(known) = known["models"].get(&name) else {
            assert_eq!(name, "muse_glimmer");
            continue;
        };
        assert_eq!(
            mapping.metadata.get("general.architecture"),
            Some(&Value::Text(known["architecture"].as_str().unwrap().into()))
        );
        let mut compared = 0;
        for (tensor, there) in known["names"].as_object().unwrap() {
            let prefixed = format!("transformer.{tensor}");
            let Some((holder, _)) = mapping.holder(tensor).or_else(|| mapping.holder(&prefixed)) else { continue };
            assert_eq!(holder.name, there.as_str().unwrap(), "{name}, {tensor}");
            compared += 1;
        }
        assert!(compared > 7, "{name}: {compared}");
    }
}

#[test]
fn keys_are_those_of_llama_cpp() {
    let text = std::fs::read_to_string(fixtures().join("formats/gguf_names.json")).unwrap();
    let known: Json = serde_json::from_str(&text).unwrap();
    let known: BTreeSet<&str> = known["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    for name in families() {
        let mapping = mapping(family(&name).config());
        let Some(Value::Text(architecture)) = mapping.metadata.get("general.architecture") else { panic!("{name}") };
        for (key, _) in mapping.metadata.iter() {
            let template = key.replace(&format!("{architecture}."), "{arch}.");
            assert!(known.contains(template.as_str()), "{name}: {key}");
        }
    }
}

/// The values of some keys of real models, as the converter of llama.cpp writes them.
#[test]
fn metadata_have_the_values_of_the_converter() {
    let real = |name: &str| {
        let text = std::fs::read_to_string(fixtures().join("configs").join(name).with_extension("json")).unwrap();
        mapping(&ModelConfig::parse(&text, name).unwrap())
    };
    let count = |number: u32| Value::U32(number);
    let check = |name: &str, expected: &[(&str, Value)]| {
        let mapping = real(name);
        for (key, value) in expected {
            assert_eq!(mapping.metadata.get(key), Some(value), "{name}: {key}");
        }
        mapping
    };
    let llama = check(
        "llama-3.2-1b.json",
        &[
            ("llama.block_count", count(16)),
            ("llama.context_length", count(131_072)),
            ("llama.attention.head_count_kv", count(8)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(5e5)),
            ("llama.rope.dimension_count", count(64)),
            ("general.size_label", Value::Text("1.2B".into())),
        ],
    );
    let [factors] = &llama.added[..] else { panic!("{:?}", llama.added) };
    assert_eq!((factors.name.as_str(), factors.values.len()), ("rope_freqs.weight", 32));
    assert_eq!((factors.values[0], factors.values[31]), (1.0, 32.0));
    // Wavelengths of 8192 / 4 positions and less are kept, those of 8192 and more are divided by 32.
    let between = factors.values.iter().filter(|&&factor| factor > 1.0 && factor < 32.0).count();
    assert_eq!(between, 3);
    check(
        "gemma-3-4b.json",
        &[
            ("gemma3.attention.sliding_window", count(1024)),
            ("gemma3.rope.scaling.type", Value::Text("linear".into())),
            ("gemma3.rope.scaling.factor", Value::F32(8.0)),
            ("gemma3.rope.freq_base", Value::F32(1e6)),
            ("gemma3.rope.freq_base_swa", Value::F32(1e4)),
            ("gemma3.attention.key_length", count(256)),
        ],
    );
    let gemma = check(
        "gemma-4-31b.json",
        &[
            ("gemma4.attention.key_length", count(512)),
            ("gemma4.attention.key_length_swa", count(256)),
            ("gemma4.rope.dimension_count", count(512)),
            ("gemma4.rope.dimension_count_swa", count(256)),
            ("gemma4.attention.shared_kv_layers", count(0)),
            ("gemma4.final_logit_softcapping", Value::F32(30.0)),
        ],
    );
    let still = gemma.added[0].values.iter().filter(|&&factor| factor == 1e30).count();
    assert_eq!((gemma.added[0].values.len(), still), (256, 192));
    let phi = check(
        "phi-3.5-mini.json",
        &[
            ("phi3.rope.scaling.original_context_length", count(4096)),
            ("phi3.rope.scaling.attn_factor", Value::F32(1.190_238_1)),
        ],
    );
    assert_eq!(phi.added.iter().map(|added| added.values.len()).collect::<Vec<_>>(), [48, 48]);
    check(
        "ministral-3-3b.json",
        &[
            ("mistral3.rope.scaling.yarn_log_multiplier", Value::F32(1.0)),
            ("mistral3.attention.temperature_scale", Value::F32(0.1)),
        ],
    );
    check(
        "granite-3.1-8b.json",
        &[("granite.logit_scale", Value::F32(16.0)), ("granite.embedding_scale", Value::F32(12.0))],
    );
}

#[test]
fn every_real_model_is_written_or_refused_by_its_family() {
    let files = std::fs::read_dir(fixtures().join("configs")).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let model = ModelConfig::parse(&std::fs::read_to_string(&path).unwrap(), &name).unwrap();
        match Mapping::of_model(&name, &model) {
            Ok(_) => {}
            Err(error) => {
                assert!(["gpt-j", "helium", "opt"].iter().any(|family| name.starts_with(family)), "{error}");
                assert!(error.to_string().contains("a model of the family"), "{error}");
            }
        }
    }
}

#[test]
fn rows_go_there_and_back() {
    // Two heads of four rows: halves (0, 1) and (2, 3) become neighbours.
    let halves = RowOrder::Neighbours { head_dim: 4 };
    assert_eq!(halves.sources(8), [0, 2, 1, 3, 4, 6, 5, 7]);
    // Two runs of a query of two rows, a key and a value of one row each.
    let part = |start, width| Columns { period: 4, start, width };
    let parts = RowOrder::Parts(vec![part(0, 2), part(2, 1), part(3, 1)]);
    assert_eq!(parts.sources(8), [0, 1, 4, 5, 2, 6, 3, 7]);
    for order in [halves, parts, RowOrder::Same] {
        let (sources, targets) = (order.sources(8), order.targets(8));
        assert!((0..8).all(|row| sources[targets[row]] == row && targets[sources[row]] == row), "{order:?}");
    }
}

/// The tensors whose rows move: queries and keys where llama.cpp turns neighbours, and fused matrices in runs.
#[test]
fn rows_move_where_llama_cpp_wants_them_elsewhere() {
    let moved = |name: &str| -> Vec<String> {
        let mapping = mapping(family(name).config());
        let moved = mapping.tensors.iter().filter(|tensor| tensor.rows != RowOrder::Same);
        moved.filter(|tensor| tensor.name.starts_with("blk.0.")).map(|tensor| tensor.name[6..].to_owned()).collect()
    };
    for name in ["llama", "mistral", "ministral3", "smollm3", "granite", "arcee"] {
        assert_eq!(moved(name), ["attn_q.weight", "attn_k.weight"], "{name}");
    }
    assert_eq!(moved("bloom"), ["attn_qkv.weight", "attn_qkv.bias"]);
    assert_eq!(moved("falcon-new"), ["attn_qkv.weight"]);
    for name in ["qwen2", "qwen3", "gemma3", "gpt2", "phi3", "cohere", "cohere2", "glm4", "olmo2", "stablelm"] {
        assert!(moved(name).is_empty(), "{name}");
    }
}

/// A model whose tensors went into a file and back computes what it computed before, and maps to the same file again.
#[test]
fn a_model_read_from_its_file_computes_the_same() {
    for name in families() {
        let model = family(&name);
        let file = File::of(&model);
        let read = file.checkpoint();
        let (before, after) = (mapping(model.config()), mapping(read.config()));
        let names =
            |mapping: &Mapping| -> Vec<String> { mapping.tensors.iter().map(|tensor| tensor.name.clone()).collect() };
        assert_eq!(names(&before), names(&after), "{name}");
        let vocab = model.config().vocab_size as u32;
        let text: Vec<u32> = (0..12).map(|token| (7 * token + 3) % vocab).collect();
        let computed = |checkpoint: &Checkpoint| {
            let mut rec = recorder(&Device::Cpu);
            let network = Network::new(&mut rec, checkpoint, None, text.len()).unwrap();
            block_on(logits(&mut rec, &network, std::slice::from_ref(&text))).unwrap()
        };
        // Windows that llama.cpp does not have matter beyond their width.
        let windowed = before.notes.iter().any(|note| note.contains("8 tokens"));
        let tokens = if windowed { 8 } else { text.len() };
        let cut = |logits: Vec<f32>| logits[..tokens * vocab as usize].to_vec();
        let expected: Vec<f64> = cut(computed(&model)).into_iter().map(f64::from).collect();
        let error = relative_error(&cut(computed(&read)), &expected);
        assert!(error < 1e-5, "{name}: {error}");
    }
}

#[test]
fn models_that_llama_cpp_computes_otherwise_are_refused() {
    let refused = |name: &str, change: &dyn Fn(&mut Json)| {
        let mut config = config(name);
        change(&mut config);
        let model = ModelConfig::from_value(&config, name).unwrap();
        Mapping::of_model(name, &model).unwrap_err().to_string()
    };
    let as_it_is = |_: &mut Json| {};
    for name in UNKNOWN {
        assert!(refused(name, &as_it_is).contains("a model of the family"), "{name}");
    }
    assert!(refused("gemma2", &as_it_is).contains("scale 0.2236068"), "{}", refused("gemma2", &as_it_is));
    assert!(refused("muse_glimmer", &as_it_is).contains("a norm over 32 columns with ε 1e-2 in layer 0"));
    assert!(refused("llama-yarn-mscale", &as_it_is).contains("beta_fast: 4.0"));
    assert!(refused("smollm3", &as_it_is).contains("in layer 1"));
    assert!(refused("cohere-qk", &as_it_is).contains("layer 0"));
    let gelu = |config: &mut Json| config["hidden_act"] = "gelu".into();
    assert!(refused("llama", &gelu).contains("a gate by Gelu in layer 0, expected a gate by Silu"));
    let biased = |config: &mut Json| config["attention_bias"] = true.into();
    assert!(refused("qwen3", &biased).contains("the linear layer attn_output with a bias"));
    let untied = |config: &mut Json| config["tie_word_embeddings"] = false.into();
    assert!(refused("gemma", &untied).contains("an output matrix that is not the embedding"));
    let serial = |config: &mut Json| config["parallel_attn"] = false.into();
    assert!(refused("falcon", &serial).contains("as llama.cpp computes the architecture \"falcon\""));
    let full = |config: &mut Json| config["layer_types"] = json!(["full_attention", "full_attention"]);
    assert!(refused("cohere2", &full).contains("at least one layer with a sliding window"));
    let scaled = |config: &mut Json| {
        config["rope_parameters"] = json!({
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        });
    };
    assert!(refused("qwen2", &scaled).contains("Llama3"));
}

/// A file of another program, which leaves out what follows from other keys.
#[test]
fn sparse_metadata_of_other_programs_are_read() {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::Text("llama".into()));
    for (key, value) in
        [("block_count", 2), ("context_length", 64), ("embedding_length", 40), ("feed_forward_length", 52)]
    {
        metadata.set(format!("llama.{key}"), Value::U64(value));
    }
    metadata.set("llama.attention.head_count", Value::I32(4));
    metadata.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let tensors = ["token_embd.weight", "output.weight"].map(|name| (name.to_owned(), vec![97, 40]));
    let (shapes, values) = (BTreeMap::from(tensors), BTreeMap::new());
    let read = |metadata: &Metadata| {
        config_of(&Contents { subject: "model.gguf", metadata, shapes: &shapes, values: &values })
    };
    let model = ModelConfig::from_value(&Json::Object(read(&metadata).unwrap()), "model.gguf").unwrap();
    let mut same = config("llama");
    same["num_key_value_heads"] = json!(4);
    assert_eq!(model, ModelConfig::from_value(&same, "config.json").unwrap());
    metadata.set("general.architecture", Value::Text("rwkv7".into()));
    let error = read(&metadata).unwrap_err().to_string();
    assert!(error.contains("model.gguf: found the architecture \"rwkv7\", expected one of llama, mistral3"), "{error}");
    metadata.set("general.architecture", Value::Text("qwen3".into()));
    assert!(read(&metadata).unwrap_err().to_string().contains("block_count"));
}
