//! Every parser of a file that a user gives, fed with bytes: whatever they are, it returns.

use aquatint::checkpoint::gguf::{blocks, container};
use aquatint::checkpoint::layouts::Packing;
use aquatint::checkpoint::{Checkpoint, MemorySource, Source, read_header};
use aquatint::eval::tasks::Task;
use aquatint::pipeline::{BlockRecord, roomy_plan, work};
use aquatint::quant::QuantizeOptions;
use aquatint::report::Document;
use aquatint::{Calibration, ModelConfig, TextFile, Tokenizer, bundled};
use pollster::block_on;

/// A parser and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("header", header),
    ("gguf", gguf),
    ("index", index),
    ("config", config),
    ("checkpoint", checkpoint),
    ("tokenizer", tokenizer),
    ("calibration", calibration),
    ("tasks", tasks),
    ("record", record),
    ("report", report),
];

/// The header of a safetensors file.
pub fn header(bytes: &[u8]) {
    let source = MemorySource::new("model.safetensors", bytes.to_vec());
    let _ = block_on(read_header(&source, "model.safetensors"));
}

/// The head of a GGUF file, and the numbers of its tensors.
pub fn gguf(bytes: &[u8]) {
    let source = MemorySource::new("model.gguf", bytes.to_vec());
    let Ok(head) = block_on(container::read_head(&source, "model.gguf")) else { return };
    for container::StoredTensor { info, range } in head.tensors {
        blocks::unpack(info.block_type, &bytes[range.start as usize..range.end as usize]).expect("whole blocks");
    }
}

/// `model.safetensors.index.json` beside one shard.
pub fn index(bytes: &[u8]) {
    let files = [("config.json", CONFIG.as_bytes()), ("model.safetensors.index.json", bytes), ("a.safetensors", SHARD)];
    let _ = open(&files);
}

/// `config.json`: the model, and how it is quantized.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ModelConfig::parse(text, "config.json").map(|model| follow(&model));
    }
    if let Ok(config) = serde_json::from_slice::<serde_json::Value>(bytes) {
        let _ = config.as_object().map(|object| Packing::of_model(object, "config.json"));
    }
}

/// Works out what follows from the description of a model.
fn follow(model: &ModelConfig) {
    model.expected_tensors();
    for block in model.distinct_blocks().chain([&*model.head]) {
        block.cuts(true);
        block.stops().for_each(|stop| drop(block.fold(stop)));
    }
    let options = QuantizeOptions::default();
    roomy_plan(model, &options);
    work(model, &options);
    for (_, attention) in model.distinct_blocks().flat_map(|block| block.attentions()) {
        let fits = attention.heads.is_multiple_of(attention.kv_heads) && attention.head_dim <= 512;
        assert!(fits, "{attention:?}, which the kernel refuses");
    }
}

/// A whole checkpoint, ordinary, GPTQ or in low precision: config.json, a line break, and one safetensors file. What opens is read.
pub fn checkpoint(bytes: &[u8]) {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let weights = bytes.get(end + 1..).unwrap_or_default();
    let Ok(model) = open(&[("config.json", &bytes[..end]), ("model.safetensors", weights)]) else { return };
    for (name, _) in model.config().expected_tensors() {
        let _ = block_on(model.read(&name));
    }
}

/// `tokenizer.json`, and a text made into tokens and back.
pub fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes("tokenizer.json", bytes) {
        let _ = tokenizer.encode("The quick brown fox, 12 ünits.\n").map(|tokens| tokenizer.decode(&tokens));
    }
}

/// A text in lines of JSON.
pub fn calibration(bytes: &[u8]) {
    thread_local! {
        static TOKENIZER: Tokenizer = block_on(block_on(bundled::checkpoint()).unwrap().tokenizer()).unwrap();
    }
    for name in ["text.jsonl", "text.txt"] {
        let file = TextFile { name: name.to_string(), bytes: bytes.to_vec().into() };
        TOKENIZER.with(|tokenizer| {
            let _ = Calibration::from_texts(tokenizer, &[file], 1024);
        });
    }
}

/// Multiple-choice questions.
pub fn tasks(bytes: &[u8]) {
    let _ = Task::parse(&TextFile { name: "tasks.jsonl".to_string(), bytes: bytes.to_vec().into() });
}

/// The record of a finished block, and the weights that a run goes on with.
pub fn record(bytes: &[u8]) {
    let Ok(record) = BlockRecord::from_bytes(bytes) else { return };
    for linear in &record.linears {
        let _ = record.stream_weight(linear.name());
        let _ = linear.dequantize();
    }
}

/// What `--json` or `--report` wrote.
pub fn report(bytes: &[u8]) {
    let _ = Document::read("report.json", bytes);
}

/// A LLaMA of one block, 32 wide.
const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"vocab_size":16,"rms_norm_eps":1e-5,"max_position_embeddings":64,"tie_word_embeddings":false}"#;

/// A safetensors file with one tensor, which is empty.
const SHARD: &[u8] = b"\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}";

fn open(files: &[(&str, &[u8])]) -> aquatint::Result<Checkpoint> {
    let source = |(name, bytes): &(&str, &[u8])| Box::new(MemorySource::new(*name, bytes.to_vec())) as Box<dyn Source>;
    block_on(Checkpoint::from_sources("model", files.iter().map(source).collect()))
}
