//! Good files for every parser, small ones: what is wrong in a mutant is seldom in the weights. The fuzz targets (fuzz/) start
//! from them too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint::checkpoint::change::Change;
use aquatint::checkpoint::format::{PlannedLayer, PlannedModel, Prepared};
use aquatint::checkpoint::formats::gptq::Gptq;
use aquatint::checkpoint::gguf::container::{TensorInfo, head, padding};
use aquatint::checkpoint::gguf::metadata::{Metadata, Value};
use aquatint::checkpoint::gguf::types::BlockType;
use aquatint::checkpoint::{Dtype, Format, QuantizationSettings};
use aquatint::device::Precision;
use aquatint::family::{LinearSpec, ModelConfig};
use aquatint::pipeline::BlockRecord;
use aquatint::record::{BlockReport, Report};
use aquatint::report::{Document, Run};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::small_model::{Model, Stored, random_layer};

/// Good files for a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let plain = plain();
    let together = |config: String, weights: Vec<u8>| [config.into_bytes(), vec![b'\n'], weights].concat();
    match target {
        "header" => vec![plain.weights()],
        "gguf" => vec![gguf()],
        "index" => {
            let names = plain.tensors.iter().map(|tensor| (tensor.name.clone(), json!("b.safetensors")));
            let map: serde_json::Map<_, _> = names.collect();
            let index = |map| json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into_bytes();
            vec![index(json!({ "a": "a.safetensors" })), index(map.into())]
        }
        "config" => {
            let mut configs = vec![plain.config.to_string().into_bytes(), four_bits().config.to_string().into_bytes()];
            configs.extend(CONFIGS.map(|config| config.as_bytes().to_vec()));
            configs.extend(family_configs());
            configs
        }
        "checkpoint" => {
            let models = [plain, four_bits(), three_bits(), fp8(), mxfp4()];
            let ours = models.map(|model| together(model.config.to_string(), model.weights()));
            // Weights stored transposed, a norm for each head, and a model inside another one.
            let families = ["gpt2", "stablelm-heads", "gemma4-wrapper"].map(|family| {
                let folder = families().join(family);
                let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
                together(compact(&folder.join("config.json")), weights)
            });
            ours.into_iter().chain(families).collect()
        }
        "tokenizer" => TOKENIZERS.map(|tokenizer| tokenizer.as_bytes().to_vec()).to_vec(),
        "calibration" => vec![
            br#"{"text": "One line."}
{"text": "Another, with \u00e4 and \"quotes\".", "id": 7}
"#
            .to_vec(),
        ],
        "tasks" => vec![
            br#"{"context": "The sky is", "choices": [" blue", " a fish"], "answer": 0}
{"query": "Two and two are", "choices": [" three", " four", " five"], "gold": 1}
"#
            .to_vec(),
        ],
        "record" => vec![record()],
        "report" => vec![report()],
        other => panic!("no seeds for {other}"),
    }
}

/// A GGUF file with a tensor of every type, a short list and a text.
fn gguf() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::Text("llama".to_string()));
    metadata.set("tokenizer.ggml.tokens", Value::List(["a", "b"].map(|text| Value::Text(text.to_string())).to_vec()));
    metadata.set("tokenizer.ggml.scores", Value::List(vec![Value::F32(0.5); 2]));
    metadata.set("general.alignment", Value::U32(8));
    let tensor = |block_type: BlockType| TensorInfo {
        name: block_type.name().to_string(),
        shape: vec![2, block_type.block_weights()],
        block_type,
    };
    let tensors = BlockType::ALL.map(tensor);
    let mut bytes = head(&metadata, &tensors).unwrap();
    for tensor in &tensors {
        let size = tensor.block_type.bytes_of(&tensor.shape).unwrap();
        bytes.resize(bytes.len() + (size + padding(size, 8)) as usize, 0x35);
    }
    bytes
}

/// The directory of the models of all families. The crate of the fuzz targets lies below the root.
fn families() -> PathBuf {
    let roots = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    roots.map(|root| root.join("tests/fixtures/families")).find(|folder| folder.is_dir()).unwrap()
}

/// The config.json of a model in every family.
pub fn family_configs() -> Vec<Vec<u8>> {
    let folders = std::fs::read_dir(families()).unwrap().map(|folder| folder.unwrap().path());
    let mut files: Vec<PathBuf> =
        folders.map(|folder| folder.join("config.json")).filter(|file| file.is_file()).collect();
    files.sort();
    files.iter().map(|file| compact(file).into_bytes()).collect()
}

/// A JSON file without white space.
fn compact(file: &Path) -> String {
    serde_json::from_slice::<serde_json::Value>(&std::fs::read(file).unwrap()).unwrap().to_string()
}

/// A model of one block, 8 wide.
fn plain() -> Model {
    Model::new(|config| {
        for (key, value) in
            [("hidden_size", 8), ("intermediate_size", 8), ("num_attention_heads", 1), ("vocab_size", 2)]
        {
            config[key] = json!(value);
        }
    })
}

/// The same with its layers in 4 bits, version 2 of the format.
fn four_bits() -> Model {
    quantized(
        plain(),
        &QuantizationSettings { bits: 4, group_size: Some(8), symmetric: false, mixture: None, damping: 0.01 },
    )
}

/// A model 32 wide in 3 bits, whose codes straddle words, version 1.
fn three_bits() -> Model {
    let model = Model::new(|config| config["num_key_value_heads"] = json!(2));
    quantized(model, &QuantizationSettings { bits: 3, group_size: None, symmetric: true, mixture: None, damping: 0.01 })
}

/// A model in FP8, with scales in blocks and for the inputs of each layer.
fn fp8() -> Model {
    let description = json!({"quant_method": "fp8", "weight_block_size": [5, 3], "activation_scheme": "static"});
    packed(plain(), description, |name, [rows, columns]| {
        let scales = [rows.div_ceil(5), columns.div_ceil(3)];
        let codes = (0..rows * columns).map(|code| code as u8 & 0xbf).collect();
        vec![
            Stored { name: format!("{name}.weight"), dtype: "F8_E4M3", shape: vec![rows, columns], bytes: codes },
            Stored::f32(&format!("{name}.weight_scale_inv"), &scales, &vec![0.5; scales[0] * scales[1]]),
            Stored::f32(&format!("{name}.activation_scale"), &[], &[0.25]),
        ]
    })
}

/// A model 32 wide in MXFP4.
fn mxfp4() -> Model {
    packed(Model::new(|_| {}), json!({"quant_method": "mxfp4"}), |name, [rows, columns]| {
        let bytes = |suffix: &str, shape: Vec<usize>| {
            let bytes = (0..shape.iter().product()).map(|byte: usize| 100 + byte as u8 % 40).collect();
            Stored { name: format!("{name}_{suffix}"), dtype: "U8", shape, bytes }
        };
        vec![bytes("blocks", vec![rows, columns / 32, 16]), bytes("scales", vec![rows, columns / 32])]
    })
}

/// `model` with the parts that `pack` gives in the place of its linear layers.
fn packed(mut model: Model, description: serde_json::Value, pack: fn(&str, [usize; 2]) -> Vec<Stored>) -> Model {
    model.config["quantization_config"] = description;
    let parts = |tensor: Stored| match tensor.name.strip_suffix("_proj.weight") {
        Some(name) => pack(&format!("{name}_proj"), [tensor.shape[0], tensor.shape[1]]),
        None => vec![tensor],
    };
    model.tensors = std::mem::take(&mut model.tensors).into_iter().flat_map(parts).collect();
    model
}

/// `model` with random codes in the place of its linear layers.
fn quantized(mut model: Model, settings: &QuantizationSettings) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (linears, others) = std::mem::take(&mut model.tensors).into_iter().partition(|t| t.name.contains("_proj"));
    model.tensors = others;
    let linears: Vec<Stored> = linears;
    let mut layers = BTreeMap::new();
    for Stored { name, shape, .. } in linears {
        let name = name.trim_end_matches(".weight").to_string();
        let spec = LinearSpec::new(name.clone(), shape[0], shape[1]);
        let layer = random_layer(&mut rng, &spec, settings);
        let (module, change) = (name.clone(), Change::None);
        let planned = PlannedLayer { spec, module, change, grid: layer.grid, original: Dtype::F32 };
        for (part, bytes) in Gptq.parts(&planned).into_iter().zip(Gptq.pack(&planned, &layer.into()).unwrap()) {
            let dtype = if part.dtype == Dtype::F16 { "F16" } else { "I32" };
            model.tensors.push(Stored { name: part.name, dtype, shape: part.shape, bytes });
        }
        layers.insert(name, planned);
    }
    let linears = layers.values().map(|layer| layer.spec.clone()).collect();
    let head = LinearSpec::new("lm_head", 2, 8);
    let config = ModelConfig::from_value(&model.config, "config.json").unwrap();
    let planned = PlannedModel {
        settings: *settings,
        config,
        prepared: Prepared::Nothing,
        float: Dtype::F32,
        linears,
        head,
        layers,
    };
    Gptq.describe(&planned, model.config.as_object_mut().unwrap());
    model
}

/// The record of a block.
fn record() -> Vec<u8> {
    let settings = QuantizationSettings { bits: 3, group_size: None, symmetric: false, mixture: None, damping: 0.01 };
    let spec = LinearSpec::new("model.layers.0.mlp.down_proj", 8, 32);
    BlockRecord {
        block: BlockReport { block: 0, delta: 0.25, error: 0.5 },
        layers: Vec::new(),
        seconds: Default::default(),
        tensors: vec![("model.norm.weight".to_string(), vec![1.0; 8])],
        linears: vec![random_layer(&mut ChaCha8Rng::seed_from_u64(4), &spec, &settings).into()],
        stream: vec![(spec.name.clone(), vec![0.5; 256])],
    }
    .to_bytes()
    .unwrap()
}

/// A page with the record of a run in it.
fn report() -> Vec<u8> {
    let report = Report {
        aquatint: "0.1.0".to_string(),
        device: "cpu".to_string(),
        options: Default::default(),
        group_size: Some(32),
        tokens: 64,
        held_out_tokens: 16,
        layers: Vec::new(),
        blocks: vec![BlockReport { block: 0, delta: 0.25, error: 0.5 }],
        seconds: Default::default(),
        total_seconds: 1.5,
        plan: None,
        peak_device_bytes: None,
        precision: Precision::Portable,
    };
    let run = Run::new("GPTQ", "model", report);
    serde_json::to_vec(&Document::new("A run", "quantize", vec![run])).unwrap()
}

/// What else a config.json may say: other families, rotary scaling, windows, rules for single layers, groups of layers.
const CONFIGS: [&str; 5] = [
    r#"{"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":8,"num_hidden_layers":2,"num_attention_heads":2,"head_dim":4,"vocab_size":2,"attention_bias":true,"mlp_bias":true,"max_position_embeddings":64,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":32},"quantization_config":{"quant_method":"gptq","bits":4,"group_size":-1,"dynamic":{"+:.*down.*":{"bits":8},"-:.*up.*":{}}}}"#,
    r#"{"model_type":"mistral","hidden_size":8,"intermediate_size":8,"num_hidden_layers":2,"num_attention_heads":2,"vocab_size":2,"max_position_embeddings":64,"sliding_window":16,"rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":1e4}}"#,
    r#"{"architectures":["Qwen2ForCausalLM"],"hidden_size":8,"intermediate_size":8,"num_hidden_layers":2,"num_attention_heads":2,"vocab_size":2,"max_position_embeddings":64,"use_sliding_window":true,"sliding_window":16,"max_window_layers":2,"hidden_act":"silu"}"#,
    r#"{"architectures":["Qwen3ForCausalLM"],"hidden_size":8,"intermediate_size":8,"num_hidden_layers":2,"num_attention_heads":2,"vocab_size":2,"max_position_embeddings":64,"use_sliding_window":true,"layer_types":["full_attention","full_attention"],"tie_word_embeddings":true}"#,
    r#"{"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":8,"num_hidden_layers":2,"num_attention_heads":2,"vocab_size":2,"max_position_embeddings":64,"quantization_config":{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":8,"type":"float","strategy":"block","block_structure":[128,128]}}}}}"#,
];

/// Tokenizers of a few words, one for each kind of model, and with what goes around them.
const TOKENIZERS: [&str; 5] = [
    r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"<s>":0,"T":1,"h":2,"e":3,"Th":4,"The":5},"merges":[["T","h"],["Th","e"]]}}"#,
    r#"{"version":"1.0","truncation":{"direction":"Right","max_length":4,"strategy":"LongestFirst","stride":0},"padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":2,"pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"},"added_tokens":[],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"a":{"id":"a","ids":[1],"tokens":["a"]}}},"decoder":{"type":"WordPiece","prefix":"\u0023\u0023","cleanup":true},"model":{"type":"WordPiece","unk_token":"?","continuing_subword_prefix":"_","max_input_chars_per_word":9,"vocab":{"?":0,"a":1,"the":2,"qu":3,"_ick":4,"fox":5}}}"#,
    r#"{"version":"1.0","added_tokens":[{"id":3,"content":"fox","single_word":true,"lstrip":true,"rstrip":true,"normalized":true,"special":false}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Nmt"},{"type":"NFKC"},{"type":"Strip","strip_left":true,"strip_right":true},{"type":"Lowercase"}]},"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},"post_processor":{"type":"BertProcessing","sep":["a",1],"cls":["b",2]},"decoder":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.0],["_the",-2.0]],"byte_fallback":false}}"#,
    r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"_"},{"type":"Replace","pattern":{"String":" "},"content":"_"},{"type":"StripAccents"}]},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\s+|\\p{L}+"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"MergedWithNext"},{"type":"FixedLength","length":5}]},"post_processor":{"type":"Sequence","processors":[{"type":"RobertaProcessing","sep":["a",1],"cls":["b",2],"trim_offsets":true,"add_prefix_space":true},{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}]},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"_"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"WordLevel","unk_token":"?","vocab":{"?":0,"a":1,"b":2,"The":3,"fox":4}}}"#,
    r#"{"version":"1.0","normalizer":{"type":"ByteLevel"},"pre_tokenizer":{"type":"WhitespaceSplit"},"decoder":{"type":"CTC","pad_token":"a","word_delimiter_token":"b","cleanup":true},"model":{"type":"BPE","dropout":0.5,"unk_token":"?","continuing_subword_prefix":"_","end_of_word_suffix":"/w","fuse_unk":true,"byte_fallback":true,"ignore_merges":true,"vocab":{"?":0,"T":1,"_h":2,"Th":3,"<0x20>":4},"merges":["T _h"]}}"#,
];
