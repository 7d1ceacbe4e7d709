//! Generation: logits with a cache, compared with full passes without one; the text, the reasons to stop, and the command.

use std::path::Path;

use crate::common::{device_tests, recorder, relative_error};
use crate::small_model::Model;
use aquatint::device::{Device, Recorder};
use aquatint::engine::Decoder;
use aquatint::engine::network::Network;
use aquatint::eval::logits;
use aquatint::stored::Replacements;
use aquatint::tokenizer::{TextStream, Tokenizer};
use aquatint::{Checkpoint, Error, GenerateOptions, Generator, Result, Stop, bundled};
use pollster::block_on;
use safetensors::SafeTensors;

const PROMPT: &str = "The city of Paris is";

/// The logits after the last of `ids`, by a full pass over all of them.
fn without_cache(rec: &mut Recorder, model: &Checkpoint, ids: &[u32]) -> Vec<f32> {
    let network = Network::new(rec, model, None, ids.len()).unwrap();
    let all = block_on(logits(rec, &network, &[ids.to_vec()])).unwrap();
    all[(ids.len() - 1) * model.config().vocab_size..].to_vec()
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    best.0 as u32
}

fn load(rec: &mut Recorder, context: usize) -> Generator {
    let model = block_on(bundled::checkpoint()).unwrap();
    block_on(Generator::load(rec, &model, None, context)).unwrap()
}

/// The text of a whole continuation.
fn run(rec: &mut Recorder, generator: &mut Generator, prompt: &str, options: GenerateOptions) -> Result<String> {
    block_on(async {
        generator.start(rec, prompt, options).await?;
        let mut text = String::new();
        while let Some(piece) = generator.next(rec).await? {
            text += &piece;
        }
        Ok(text)
    })
}

fn greedy(tokens: usize) -> GenerateOptions {
    GenerateOptions { tokens, ..GenerateOptions::default() }
}

device_tests!(greedy_tokens_are_those_of_full_passes: cpu, software_gpu);
fn greedy_tokens_are_those_of_full_passes(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let tokens = if matches!(device, Device::Cpu) { 40 } else { 6 };
    let mut rec = recorder(&device);
    let mut generator = load(&mut rec, 100);
    let text = run(&mut rec, &mut generator, PROMPT, greedy(tokens)).unwrap();
    assert_eq!((generator.generated().len(), generator.stop()), (tokens, Some(Stop::TokenLimit)));
    let tokenizer = block_on(model.tokenizer()).unwrap();
    assert_eq!(text, tokenizer.decode(generator.generated()).unwrap());
    let mut ids = tokenizer.encode(PROMPT).unwrap();
    assert_eq!(generator.prompt(), ids);
    for (index, &token) in generator.generated().iter().enumerate() {
        let expected = likeliest(&without_cache(&mut rec, &model, &ids));
        assert_eq!(token, expected, "token {index} on {}", device.name());
        ids.push(token);
    }
}

fn check_family(device: Device, family: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    let model = block_on(Checkpoint::open(&folder)).unwrap();
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let ids = SafeTensors::deserialize(&bytes).unwrap().tensor("input_ids").unwrap().data().to_vec();
    let ids: Vec<u32> = ids.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let ids = &ids[..21];
    let mut rec = recorder(&device);
    let mut decoder = block_on(Decoder::load(&mut rec, &model, None, 30)).unwrap();
    let mut read = 0;
    // A prompt, two steps, a piece of several tokens that reaches beyond the window of 8, and a step.
    for count in [11, 1, 1, 7, 1] {
        let ours = block_on(decoder.extend(&mut rec, &ids[read..read + count])).unwrap();
        read += count;
        assert_eq!(decoder.len(), read);
        let expected: Vec<f64> = without_cache(&mut rec, &model, &ids[..read]).iter().map(|&l| l.into()).collect();
        let error = relative_error(&ours, &expected);
        assert!(error < 1e-5, "{family} on {} after {read}: {error}", device.name());
    }
}

macro_rules! families {
    ($($name:ident: $folder:literal),* $(,)?) => {
        $(device_tests!($name: cpu, software_gpu);
        fn $name(device: Device) {
            check_family(device, $folder);
        })*
    };
}

families! {
    llama_in_pieces: "llama",
    llama_scaled_in_pieces: "llama-scaled",
    llama_linear_in_pieces: "llama-linear",
    mistral_in_pieces: "mistral",
    qwen2_in_pieces: "qwen2",
    qwen3_in_pieces: "qwen3",
}

#[test]
fn a_prompt_longer_than_a_piece_is_read_whole() {
    let model = block_on(Model::new(|config| config["max_position_embeddings"] = 2000.into()).open()).unwrap();
    let ids: Vec<u32> = (0..1100u32).map(|i| i * i % 16).collect();
    let mut rec = recorder(&Device::Cpu);
    let mut decoder = block_on(Decoder::load(&mut rec, &model, None, 5000)).unwrap();
    assert_eq!(decoder.context(), 2000, "no more than the model's positions");
    let ours = block_on(decoder.extend(&mut rec, &ids)).unwrap();
    let expected: Vec<f64> = without_cache(&mut rec, &model, &ids).iter().map(|&l| l.into()).collect();
    assert!(relative_error(&ours, &expected) < 1e-5);
    decoder.clear();
    assert!(decoder.is_empty());
    let again = block_on(decoder.extend(&mut rec, &ids)).unwrap();
    assert_eq!(ours, again, "what a cleared cache held has no effect");
}

#[test]
fn tokens_that_do_not_fit_are_refused_and_change_nothing() {
    let model = block_on(Model::new(|_| ()).open()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let mut decoder = block_on(Decoder::load(&mut rec, &model, None, 3)).unwrap();
    for ids in [&[][..], &[16], &[1, 2, 3, 4]] {
        assert!(matches!(block_on(decoder.extend(&mut rec, ids)), Err(Error::Shape { .. })), "{ids:?}");
    }
    assert!(decoder.is_empty());
    block_on(decoder.extend(&mut rec, &[1, 2, 3])).unwrap();
    assert!(block_on(decoder.extend(&mut rec, &[1])).is_err());
    assert_eq!(decoder.len(), 3);
    let refused = block_on(Decoder::load(&mut rec, &model, None, 0)).unwrap_err().to_string();
    assert!(refused.starts_with("context: "), "{refused}");
}

#[test]
fn logits_that_overflow_are_an_error() {
    let mut model = Model::new(|_| ());
    let norm = model.tensor("model.norm.weight");
    norm.bytes = std::iter::repeat_n(f32::MAX.to_le_bytes(), 32).flatten().collect();
    let model = block_on(model.open()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let mut decoder = block_on(Decoder::load(&mut rec, &model, None, 8)).unwrap();
    assert!(matches!(block_on(decoder.extend(&mut rec, &[1, 2])), Err(Error::NotFinite { .. })));
}

#[test]
fn the_seed_decides_the_text() {
    let mut rec = recorder(&Device::Cpu);
    let mut generator = load(&mut rec, 100);
    let mut text = |temperature, seed| {
        let options = GenerateOptions { tokens: 30, temperature, seed };
        run(&mut rec, &mut generator, PROMPT, options).unwrap()
    };
    let first = text(1.0, 1);
    assert_eq!(first, text(1.0, 1));
    assert_ne!(first, text(1.0, 2));
    assert_eq!(text(0.0, 1), text(0.0, 2));
    assert_eq!(text(0.0, 1), text(1e-9, 2), "a low temperature takes the likeliest");
}

#[test]
fn a_full_context_ends_the_text() {
    let mut rec = recorder(&Device::Cpu);
    let mut generator = load(&mut rec, 20);
    let text = run(&mut rec, &mut generator, PROMPT, greedy(100)).unwrap();
    assert_eq!(generator.stop(), Some(Stop::ContextFull));
    assert_eq!(generator.prompt().len() + generator.generated().len(), 20);
    assert_eq!(block_on(generator.next(&mut rec)).unwrap(), None, "it stays at the end");
    let mut roomy = load(&mut rec, 40);
    let longer = run(&mut rec, &mut roomy, PROMPT, greedy(100)).unwrap();
    assert!(longer.starts_with(&text) && longer.len() > text.len());
    // The context must have room for at least one token after the prompt.
    let prompt = generator.prompt().len();
    let mut tight = load(&mut rec, prompt + 1);
    run(&mut rec, &mut tight, PROMPT, greedy(100)).unwrap();
    assert_eq!((tight.generated().len(), tight.stop()), (1, Some(Stop::ContextFull)));
    let mut full = load(&mut rec, prompt);
    let refused = run(&mut rec, &mut full, PROMPT, greedy(100)).unwrap_err().to_string();
    assert!(refused.starts_with("prompt: ") && refused.contains("raise context"), "{refused}");
}

/// The bundled model with this generation_config.json, and this `eos_token_id` in its config.json.
fn with_end_tokens(generation_config: &str, config: &str) -> Result<Checkpoint> {
    let sources = bundled::sources().into_iter().map(|source| {
        let bytes = block_on(source.read(0..source.len())).unwrap().into_owned();
        let bytes = match source.name() {
            "generation_config.json" => generation_config.into(),
            "config.json" => String::from_utf8(bytes)
                .unwrap()
                .replace("\"eos_token_id\": 0", &format!("\"eos_token_id\": {config}"))
                .into_bytes(),
            _ => bytes,
        };
        Box::new(aquatint::checkpoint::MemorySource::new(source.name(), bytes)) as Box<dyn aquatint::checkpoint::Source>
    });
    block_on(Checkpoint::from_sources("edited", sources.collect()))
}

#[test]
fn an_end_token_ends_the_text_and_is_no_part_of_it() {
    let mut rec = recorder(&Device::Cpu);
    let mut generator = load(&mut rec, 100);
    run(&mut rec, &mut generator, PROMPT, greedy(12)).unwrap();
    let tokens = generator.generated().to_vec();
    let end = tokens[9];
    let before = tokens.iter().position(|&token| token == end).unwrap();
    for (generation_config, config) in [
        (format!("{{\"eos_token_id\": {end}}}"), "0".to_owned()),
        (format!("{{\"eos_token_id\": [1023, {end}]}}"), "0".to_owned()),
        ("{}".to_owned(), end.to_string()),
        ("{\"eos_token_id\": null}".to_owned(), format!("[{end}]")),
    ] {
        let model = with_end_tokens(&generation_config, &config).unwrap();
        let mut generator = block_on(Generator::load(&mut rec, &model, None, 100)).unwrap();
        run(&mut rec, &mut generator, PROMPT, greedy(100)).unwrap();
        assert_eq!(generator.stop(), Some(Stop::EndOfText), "{generation_config}");
        assert_eq!(generator.generated(), &tokens[..before]);
    }
    for wrong in ["{\"eos_token_id\": \"end\"}", "{\"eos_token_id\": [1, -1]}"] {
        let model = with_end_tokens(wrong, "0").unwrap();
        let refused = block_on(Generator::load(&mut rec, &model, None, 100)).unwrap_err().to_string();
        assert!(refused.contains("generation_config.json") && refused.contains("eos_token_id"), "{refused}");
    }
}

#[test]
fn an_empty_prompt_is_the_beginning_of_a_text() {
    let mut rec = recorder(&Device::Cpu);
    let mut generator = load(&mut rec, 100);
    run(&mut rec, &mut generator, "", greedy(3)).unwrap();
    assert_eq!((generator.prompt(), generator.generated().len()), (&[0][..], 3));
    let model = with_end_tokens("{}", "0, \"bos_token_id\": null").unwrap();
    let mut generator = block_on(Generator::load(&mut rec, &model, None, 100)).unwrap();
    let refused = run(&mut rec, &mut generator, "", greedy(3)).unwrap_err().to_string();
    assert!(refused.starts_with("prompt: ") && refused.contains("no text"), "{refused}");
}

#[test]
fn replaced_layers_take_part() {
    let mut rec = recorder(&Device::Cpu);
    let model = block_on(bundled::checkpoint()).unwrap();
    let windows = vec![(1..65).collect(), (101..165).collect()];
    let options = aquatint::quant::QuantizeOptions { bits: 2, samples: 2, seq_len: 64, ..Default::default() };
    let mut layers = Replacements::new();
    block_on(aquatint::pipeline::quantize(&mut rec, &model, &windows, &options, &mut layers, &mut ())).unwrap();
    let mut decoder = block_on(Decoder::load(&mut rec, &model, Some(&layers), 9)).unwrap();
    let ours = block_on(decoder.extend(&mut rec, &[5, 6, 7])).unwrap();
    let network = Network::new(&mut rec, &model, Some(&layers), 3).unwrap();
    let all = block_on(logits(&mut rec, &network, &[vec![5, 6, 7]])).unwrap();
    let expected: Vec<f64> = all[2 * 1024..].iter().map(|&l| l.into()).collect();
    assert!(relative_error(&ours, &expected) < 1e-5);
    assert!(relative_error(&without_cache(&mut rec, &model, &[5, 6, 7]), &expected) > 0.01);
}

/// Feeds `ids` one by one after `prompt`. Returns the pieces of text, and what was held back until the end.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = TextStream::after(prompt.to_vec());
    let pieces = ids.iter().map(|&id| stream.push(tokenizer, id).unwrap()).collect();
    (pieces, stream.rest(tokenizer).unwrap())
}

const TEXTS: [&str; 4] = [" A naïve café, 日本語", " 🙂🙃 two  spaces\n\nand lines ", "Ünïcödé", "\u{FFFD} kept"];

#[test]
fn pieces_of_a_byte_level_text_are_whole_characters_and_add_up() {
    let tokenizer = block_on(block_on(bundled::checkpoint()).unwrap().tokenizer()).unwrap();
    let prompt = tokenizer.encode("Once upon a time").unwrap();
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        let (mut parts, rest) = pieces(&tokenizer, &prompt, &ids);
        assert!(text.is_ascii() || parts.iter().any(String::is_empty), "no character of '{text}' had to wait");
        assert!(parts.iter().all(|piece| !piece.ends_with('\u{FFFD}')), "{parts:?}");
        parts.push(rest);
        assert_eq!(parts.concat(), text);
    }
    // Half a character is held back, and shown as a replacement character at the end.
    let ids = tokenizer.encode("語").unwrap();
    let (parts, rest) = pieces(&tokenizer, &prompt, &ids[..1]);
    assert_eq!((parts.concat().as_str(), rest.as_str()), ("", "\u{FFFD}"));
}

/// A tokenizer like those that were converted from SentencePiece: "▁" stands for a space, characters without a token become bytes,
/// and the decoder drops the space at the start of a text.
fn sentence_piece() -> Tokenizer {
    let words = ["<s>", "▁", "▁the", "▁cat", "s", "▁s", "at"].map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let vocabulary: serde_json::Map<_, _> =
        words.into_iter().chain(bytes).enumerate().map(|(id, word)| (word, id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "added_tokens": [{ "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocabulary, "merges": [] },
    });
    Tokenizer::from_bytes("tokenizer.json", tokenizer.to_string().as_bytes()).unwrap()
}

#[test]
fn pieces_of_a_sentence_piece_text_keep_their_spaces() {
    let tokenizer = sentence_piece();
    let byte = |byte: u8| 7 + u32::from(byte);
    let (parts, rest) = pieces(&tokenizer, &[0, 2], &[3, 4, 1, 5, 6]);
    assert_eq!((parts, rest.as_str()), ([" cat", "s", " ", " s", "at"].map(str::to_owned).to_vec(), ""));
    let (parts, _) = pieces(&tokenizer, &[0], &[2, 3]);
    assert_eq!(parts, ["the", " cat"], "a text that starts with the continuation starts without a space");
    let euro: Vec<u32> = "€".bytes().map(byte).collect();
    let (parts, rest) = pieces(&tokenizer, &[2], &[&euro[..], &[3]].concat());
    assert_eq!((parts, rest.as_str()), (["", "", "€", " cat"].map(str::to_owned).to_vec(), ""));
}
