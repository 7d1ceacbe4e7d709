//! Files that are nearly right: every parser of a user's file takes thousands of them without panicking and without asking for more
//! memory than the file warrants.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::catch_unwind;

use aquatint::checkpoint::GptqSettings;
use aquatint::model::config::LinearSpec;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::small_model::{Model, Stored, random_layer, safetensors_file};

mod targets;

/// Mutants of each good file.
const MUTANTS: usize = 1500;
/// What a parser may hold at a time: so many bytes for each of the file, and this many more. The names of all tensors of a
/// model of 10,000 blocks, which a config.json of some bytes can ask for, are the latter.
const TIMES: usize = 64;
const MORE: usize = 48 << 20;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with an account per thread.
struct Counting;

fn book(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        book(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        book(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        book(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        book(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` holds at a time on this thread.
fn most_held(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    MOST.set(before);
    work();
    (MOST.get() - before) as usize
}

/// Good files for a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let plain = Model::new(|_| {});
    let gptq = gptq_checkpoint();
    let together = |config: String, weights: Vec<u8>| [config.into_bytes(), vec![b'\n'], weights].concat();
    match target {
        "header" => vec![plain.weights()],
        "index" => {
            let names = plain.tensors.iter().map(|tensor| (tensor.name.clone(), json!("a.safetensors")));
            let map: serde_json::Map<_, _> = names.collect();
            vec![json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into_bytes()]
        }
        "config" => vec![plain.config.to_string().into_bytes(), gptq.0.to_string().into_bytes()],
        "checkpoint" => vec![
            together(plain.config.to_string(), plain.weights()),
            together(gptq.0.to_string(), gptq.1),
            together(targets::CONFIG.to_string(), plain.weights()),
        ],
        "tokenizer" => vec![TOKENIZER.as_bytes().to_vec()],
        "calibration" => vec![
            br#"{"text": "One line."}
{"text": "Another, with \u00e4 and \"quotes\".", "id": 7}
"#
            .to_vec(),
        ],
        "tasks" => vec![
            br#"{"context": "The sky is", "choices": [" blue", " a fish"], "answer": 0}
{"context": "Two and two are", "choices": [" three", " four", " five"], "answer": 1}
"#
            .to_vec(),
        ],
        "record" => vec![record()],
        other => panic!("no seeds for {other}"),
    }
}

/// A word-level tokenizer of a few words.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"<s>":0,"T":1,"h":2,"e":3,"Th":4,"The":5},"merges":[["T","h"],["Th","e"]]}}"#;

/// config.json and weights of the small model, quantized to 4 bits.
fn gptq_checkpoint() -> (serde_json::Value, Vec<u8>) {
    let settings = GptqSettings { bits: 4, group_size: Some(32), symmetric: false, damping: 0.01 };
    let mut model = Model::new(|_| {});
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let linears: Vec<(String, Vec<usize>)> = model
        .tensors
        .iter()
        .filter(|tensor| tensor.name.contains("_proj"))
        .map(|tensor| (tensor.name.trim_end_matches(".weight").to_string(), tensor.shape.clone()))
        .collect();
    model.tensors.retain(|tensor| !tensor.name.contains("_proj"));
    for (name, shape) in linears {
        let spec = LinearSpec { name: name.clone(), rows: shape[0], columns: shape[1], bias: false };
        let layer = random_layer(&mut rng, &spec, &settings);
        for (part, bytes) in layer.layout().parts().into_iter().zip(layer.pack().unwrap()) {
            let dtype = if part.suffix == "scales" { "F16" } else { "I32" };
            model.tensors.push(Stored { name: format!("{name}.{}", part.suffix), dtype, shape: part.shape, bytes });
        }
    }
    model.config["quantization_config"] = settings.to_json();
    (model.config.clone(), safetensors_file(model.tensors.iter()))
}

/// The record of a block.
fn record() -> Vec<u8> {
    let settings = GptqSettings { bits: 3, group_size: None, symmetric: false, damping: 0.01 };
    let spec = LinearSpec { name: "model.layers.0.mlp.down_proj".to_string(), rows: 8, columns: 32, bias: false };
    aquatint::pipeline::BlockRecord {
        block: aquatint::report::BlockReport { block: 0, delta: 0.25, error: 0.5 },
        layers: Vec::new(),
        seconds: Default::default(),
        tensors: vec![("model.norm.weight".to_string(), vec![1.0; 8])],
        linears: vec![random_layer(&mut ChaCha8Rng::seed_from_u64(4), &spec, &settings).into()],
        stream: vec![(spec.name.clone(), vec![0.5; 256])],
    }
    .to_bytes()
    .unwrap()
}

/// Numbers that parsers stumble over.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "7",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "1e-320",
    "NaN",
    "null",
    "[]",
];

/// `good` with one to four changes: bits, pieces cut, doubled or moved, and other numbers in the place of numbers.
fn mutant(good: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        // Headers are where the trouble is.
        let reach = if rng.random_bool(0.7) { bytes.len().min(600) } else { bytes.len() };
        let at = rng.random_range(0..reach);
        let length = rng.random_range(1..=32.min(bytes.len() - at));
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let piece = bytes[at..at + length].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            5 => {
                let start = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |offset| at + offset);
                let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| start + n);
                let number = NUMBERS[rng.random_range(0..NUMBERS.len())];
                bytes.splice(start..end, number.bytes());
            }
            _ => {
                // The length of a header, or any other number of eight bytes.
                let mut eight = [0; 8];
                let count = rng.random_range(1..=8);
                rng.fill_bytes(&mut eight[..count]);
                let end = bytes.len().min(8);
                bytes[..end].copy_from_slice(&eight[..end]);
            }
        }
    }
    bytes
}

#[test]
fn no_file_makes_a_parser_panic_or_take_much_memory() {
    for (name, target) in targets::TARGETS {
        // What is made once and kept is not the file's.
        target(&[]);
        for (number, good) in seeds(name).iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(number as u64);
            for round in 0..=MUTANTS {
                let bytes = if round == 0 { good.clone() } else { mutant(good, &mut rng) };
                let mut panicked = false;
                let held = most_held(|| panicked = catch_unwind(|| target(&bytes)).is_err());
                let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
                assert!(!panicked, "{name}, seed {number}, round {round}: {}", shown());
                let limit = TIMES * bytes.len() + MORE;
                assert!(held <= limit, "{name}, seed {number}, round {round}: {held} bytes held: {}", shown());
            }
        }
    }
}

#[test]
fn the_seeds_are_good_files() {
    let (config, weights) = gptq_checkpoint();
    let files = vec![("config.json", config.to_string().into_bytes()), ("model.safetensors", weights)];
    let model = pollster::block_on(crate::small_model::open(files)).unwrap();
    assert!(model.is_quantized("model.layers.0.mlp.down_proj.weight"));
    assert!(aquatint::Tokenizer::from_bytes("tokenizer.json", TOKENIZER.as_bytes()).is_ok());
    assert!(aquatint::pipeline::BlockRecord::from_bytes(&record()).is_ok());
    let file = |bytes: Vec<u8>| aquatint::TextFile { name: "a.jsonl".to_string(), bytes: bytes.into() };
    assert!(aquatint::eval::tasks::Task::parse(&file(seeds("tasks").remove(0))).is_ok());
}
