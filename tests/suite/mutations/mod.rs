//! Files that are nearly right: every parser of a user's file takes thousands of them, and those that fuzzing (fuzz/) has kept,
//! without panicking and without asking for more memory than the file warrants.

use std::fs;
use std::path::Path;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use allocation::check;
use seeds::seeds;

mod allocation;
mod seeds;
mod targets;

/// Mutants of each good file.
const MUTANTS: usize = 1500;

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
    for (name, parser) in targets::TARGETS {
        // What is made once and kept is not the file's.
        parser(&[]);
        for (number, good) in seeds(name).iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(number as u64);
            for round in 0..=MUTANTS {
                let bytes = if round == 0 { good.clone() } else { mutant(good, &mut rng) };
                let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
                check(parser, &bytes)
                    .unwrap_or_else(|found| panic!("{name}, seed {number}, round {round}: {found}: {}", shown()));
            }
        }
    }
}

/// Values that a config.json may have instead of the right ones.
fn wrong_values() -> Vec<Value> {
    let numbers =
        [0_i64, 1, 2, 3, 5, 7, 48, 511, 512, 513, 1000, 4097, 65_537, 1 << 20, 1 << 30, 1 << 31, (1 << 32) - 1, -1];
    let mut values: Vec<Value> = numbers.map(|number| json!(number)).to_vec();
    values.extend([json!(u64::MAX), json!(1e308), json!(1e-320), json!(0.3), json!(1.5)]);
    values.extend([json!(null), json!(true), json!(false), json!(""), json!("yarn"), json!("relu2")]);
    values.extend([
        json!([]),
        json!([0]),
        json!([1, 1]),
        json!(["sliding_attention", "sliding_attention"]),
        json!({}),
        json!({"1": {"head_dim": 9}}),
    ]);
    values
}

/// The paths of all values inside `value`, as JSON pointers.
fn pointers(value: &Value, path: &str) -> Vec<String> {
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, value)| (format!("{path}/{key}"), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (format!("{path}/{index}"), value)).collect()
        }
        _ => Vec::new(),
    };
    inside.into_iter().flat_map(|(path, value)| [vec![path.clone()], pointers(value, &path)].concat()).collect()
}

#[test]
fn nor_does_a_family_with_other_values_in_its_config() {
    let wrong = wrong_values();
    for (number, good) in seeds::family_configs().iter().enumerate() {
        let good: Value = serde_json::from_slice(good).unwrap();
        let paths = pointers(&good, "");
        let read = |config: &Value, what: &dyn std::fmt::Debug| {
            check(targets::config, config.to_string().as_bytes())
                .unwrap_or_else(|found| panic!("{found}: {what:?} in {config}"));
        };
        for (path, value) in paths.iter().flat_map(|path| wrong.iter().map(move |value| (path, value))) {
            let mut config = good.clone();
            *config.pointer_mut(path).unwrap() = value.clone();
            read(&config, &(path, value));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(number as u64);
        for _ in 0..MUTANTS {
            let mut config = good.clone();
            for _ in 0..rng.random_range(2..=4) {
                let path = &paths[rng.random_range(0..paths.len())];
                let value = wrong[rng.random_range(0..wrong.len())].clone();
                // An earlier change may have removed the place.
                config.pointer_mut(path).into_iter().for_each(|place| *place = value.clone());
            }
            read(&config, &"several");
        }
    }
}

#[test]
fn nor_does_any_that_fuzzing_kept() {
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus-saved");
    for (name, parser) in targets::TARGETS {
        parser(&[]);
        let files: Vec<_> = fs::read_dir(saved.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "nothing saved for {name}");
        for file in files {
            check(parser, &fs::read(&file).unwrap()).unwrap_or_else(|found| panic!("{}: {found}", file.display()));
        }
    }
}

#[test]
fn the_seeds_are_good_files() {
    for seed in seeds("checkpoint") {
        let end = seed.iter().position(|&byte| byte == b'\n').unwrap();
        let files = vec![("config.json", seed[..end].to_vec()), ("model.safetensors", seed[end + 1..].to_vec())];
        let model = pollster::block_on(crate::small_model::open(files)).unwrap();
        let weight = model.config().linears().last().unwrap().weight();
        assert_eq!(model.is_packed(&weight), model.layout().is_some());
        assert!(pollster::block_on(model.read(&weight)).is_ok());
    }
    for seed in seeds("config") {
        aquatint::ModelConfig::parse(std::str::from_utf8(&seed).unwrap(), "config.json").unwrap();
    }
    for seed in seeds("tokenizer") {
        aquatint::Tokenizer::from_bytes("tokenizer.json", &seed).unwrap();
    }
    let file = |bytes: Vec<u8>| aquatint::TextFile { name: "a.jsonl".to_string(), bytes: bytes.into() };
    aquatint::eval::tasks::Task::parse(&file(seeds("tasks").remove(0))).unwrap();
    aquatint::pipeline::BlockRecord::from_bytes(&seeds("record")[0]).unwrap();
    aquatint::report::Document::read("report.json", &seeds("report")[0]).unwrap();
}
