//! Text to windows of tokens.

use std::collections::BTreeSet;

use aquatint::{Calibration, Error, Sampling, TextFile, Tokenizer, bundled};
use proptest::prelude::*;
use serde_json::{Value, json};

const TOKENIZER: &[u8] = include_bytes!("../fixtures/tiny-llama/tokenizer.json");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes("tokenizer.json", TOKENIZER).unwrap()
}

/// The tokenizer with the given fields replaced.
fn altered(fields: &[(&str, Value)]) -> Tokenizer {
    let mut json: Value = serde_json::from_slice(TOKENIZER).unwrap();
    for (key, value) in fields {
        json[*key] = value.clone();
    }
    Tokenizer::from_bytes("tokenizer.json", json.to_string().as_bytes()).unwrap()
}

fn file(name: &str, text: &str) -> TextFile {
    TextFile { name: name.into(), bytes: text.as_bytes().to_vec().into() }
}

fn bundled_text() -> Calibration {
    Calibration::from_texts(&tokenizer(), &[bundled::calibration_text()], 1024).unwrap()
}

fn refusal(files: &[TextFile]) -> String {
    Calibration::from_texts(&tokenizer(), files, 1024).unwrap_err().to_string()
}

#[test]
fn sequential_windows_are_the_first_ones_in_order() {
    let text = bundled_text();
    let windows = text.windows(5, 100, Sampling::Sequential, 0).unwrap();
    assert_eq!(windows.len(), 5);
    assert_eq!(windows.concat(), text.tokens()[..500]);
    let all = text.sequential_windows(100);
    assert_eq!(all, text.tokens().len() / 100);
    assert!(text.windows(all, 100, Sampling::Sequential, 0).is_ok());
    assert!(text.windows(all + 1, 100, Sampling::Sequential, 0).is_err());
}

#[test]
fn random_windows_follow_the_seed_alone() {
    let text = bundled_text();
    let draw = |seed| text.windows(16, 64, Sampling::Random, seed).unwrap();
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
    assert!(draw(3).iter().all(|w| text.tokens().windows(64).any(|v| v == w)));

    // Fixed for good: another draw would change every published number.
    let drawn = text.windows(4, 64, Sampling::Random, 0).unwrap();
    let start = |window: &Vec<u32>| text.tokens().windows(64).position(|other| other == window).unwrap();
    assert_eq!(drawn.iter().map(start).collect::<Vec<_>>(), [29806, 32282, 33230, 21213]);
}

proptest! {
    #[test]
    fn random_windows_start_at_distinct_places(seed in any::<u64>(), samples in 1usize..40) {
        // No two windows of this text are equal, and it is just long enough: every start must come up once.
        let numbers: String = (0..60).map(|i| format!(" {i}")).collect();
        let text = Calibration::from_texts(&tokenizer(), &[file("a.txt", &numbers)], 1024).unwrap();
        let spare = text.tokens().len() - samples + 1;
        let windows = text.windows(samples, spare, Sampling::Random, seed).unwrap();
        let starts: BTreeSet<Vec<u32>> = windows.into_iter().collect();
        prop_assert_eq!(starts.len(), samples);
    }
}

#[test]
fn files_and_lines_are_concatenated_as_token_streams() {
    let tokenizer = tokenizer();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    let lines = "{\"text\": \"The first.\"}\n\n{\"text\": \"The second\\nin two lines.\", \"id\": 7}\n";
    let both = [file("a.txt", "A plain text.\n"), file("b.JSONL", lines)];
    let joined = Calibration::from_texts(&tokenizer, &both, 1024).unwrap();
    let expected = [encode("A plain text.\n"), encode("The first."), encode("The second\nin two lines.")].concat();
    assert_eq!(joined.tokens(), expected);
}

#[test]
fn special_tokens_are_added_where_the_tokenizer_says_and_only_there() {
    let plain = tokenizer().encode("Paris is a city.").unwrap();
    let bos = altered(&[(
        "post_processor",
        json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }),
    )]);
    assert_ne!(plain[0], 0);
    assert_eq!(bos.encode("Paris is a city.").unwrap(), [vec![0], plain].concat());
}

#[test]
fn truncation_and_padding_of_the_tokenizer_file_are_ignored() {
    let text = "A text of more than four tokens, surely.";
    let cut = altered(&[
        ("truncation", json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0})),
        (
            "padding",
            json!({"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                   "pad_type_id": 0, "pad_token": "<|endoftext|>"}),
        ),
    ]);
    assert_eq!(cut.encode(text).unwrap(), tokenizer().encode(text).unwrap());
}

#[test]
fn a_text_that_is_too_short_says_how_short() {
    let text = Calibration::from_texts(&tokenizer(), &[file("short.txt", "Hello there.")], 1024).unwrap();
    let tokens = text.tokens().len();
    let sequential = text.windows(128, 2048, Sampling::Sequential, 0).unwrap_err().to_string();
    for part in
        ["short.txt", &format!("found {tokens} tokens"), "262144", "128 samples of 2048", "smaller samples or seq_len"]
    {
        assert!(sequential.contains(part), "{part} in {sequential}");
    }
    let random = text.windows(128, 2048, Sampling::Random, 0).unwrap_err().to_string();
    assert!(random.contains("2175"), "{random}");
    for (samples, seq_len, option) in [(0, 8, "samples: "), (8, 0, "seq_len: ")] {
        let error = text.windows(samples, seq_len, Sampling::Random, 0).unwrap_err().to_string();
        assert!(error.starts_with(option), "{error}");
    }
}

#[test]
fn bad_files_are_named_with_the_line() {
    for (name, text) in [("empty.txt", " \n"), ("empty.jsonl", "\n"), ("blank.jsonl", "{\"text\": \"\"}")] {
        let error = refusal(&[file(name, text)]);
        assert!(error.starts_with(name) && error.contains("no text"), "{error}");
    }
    let broken = refusal(&[file("b.jsonl", "{\"text\": \"fine\"}\n\n{\"body\": \"no\"}\n")]);
    assert!(broken.starts_with("b.jsonl, line 3") && broken.contains("\"text\""), "{broken}");
    let binary = refusal(&[TextFile { name: "c.txt".into(), bytes: vec![b'a', 0xff].into() }]);
    assert!(binary.starts_with("c.txt") && binary.contains("UTF-8"), "{binary}");
}

#[test]
fn a_tokenizer_of_another_model_is_noticed() {
    let text = [file("a.txt", "Some ordinary words.")];
    let error = Calibration::from_texts(&tokenizer(), &text, 100).unwrap_err().to_string();
    assert!(error.contains("vocabulary of 100") && error.contains("a.txt"), "{error}");
    let Err(Error::Input { subject, .. }) = Tokenizer::from_bytes("x/tokenizer.json", b"{}") else {
        panic!("an empty object is no tokenizer");
    };
    assert_eq!(subject.to_string(), "x/tokenizer.json");
}
