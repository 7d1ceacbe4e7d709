//! The tokenizer inside a GGUF file: what is written gives the same tokens when it is read, and nothing that is
//! malformed or unknown gets through.

use aquatint::bundled;
use aquatint::checkpoint::gguf::metadata::{Metadata, Value as Stored};
use aquatint::checkpoint::gguf::tokenizer::{SpecialTokens, TokenizerFiles, special_tokens, tokenizer_json};
use aquatint::tokenizer::Tokenizer;
use pollster::block_on;
use serde_json::{Value, json};

/// Texts with digits, spaces, ends of lines, several scripts, emoji, and tokens with a meaning.
const TEXTS: [&str; 24] = [
    "Hello world",
    "  two spaces before, and behind  ",
    " ",
    "\n",
    "a\nb\n\nc\n\n\nd\r\n\r\ne",
    "\ttabs\t\there \t\n x",
    "3 33 333 3333 33333 1234567890 3.14159e-10",
    "½ ² ³ ¼ Ⅷ ٣٤",
    "don't DON'T I'll we've 'tis 'RE",
    "naïve café ÄPFEL",
    "дом и лес",
    "你好，世界！我想在apple工作",
    "日本語のテキスト。カタカナ",
    "한국어 문장",
    "🚀 (normal) 😶\u{200d}🌫\u{fe0f} 🦙🦙 ✅",
    "नमस्ते दुनिया",
    "<|endoftext|>behind <|endoftext|> <|endoftext|>",
    "<s>x</s> y <unk>",
    "def f(x):\n    return x**2 + 1  # comment\n",
    "{\"a\": [1, 2, {\"b\": null}]} ------====== ..... ```",
    "CamelCaseWords and snake_case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa abababa",
    "a  b   c    d     e                                        f",
    "\u{a0}nbsp\u{2003}em\u{200b}zero \u{301} \u{0} \u{fffd}",
];

const SUBJECT: &str = "model.gguf";

/// The files of the bundled model.
fn bundled_files() -> TokenizerFiles {
    let checkpoint = block_on(bundled::checkpoint()).unwrap();
    block_on(TokenizerFiles::of(&checkpoint)).unwrap()
}

/// The pairs for `files`, without notes.
fn written(files: &TokenizerFiles) -> Metadata {
    let mut metadata = Metadata::new();
    assert_eq!(files.write(&mut metadata).unwrap(), Vec::<String>::new());
    metadata
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(SUBJECT, json.to_string().as_bytes()).unwrap()
}

/// Checks that the tokenizer read from `metadata` gives the same tokens and texts as that of `files`.
#[track_caller]
fn check_same(files: &TokenizerFiles, metadata: &Metadata) {
    let (there, back) = (tokenizer(&files.tokenizer), tokenizer(&tokenizer_json(SUBJECT, metadata).unwrap()));
    for text in TEXTS {
        let ids = there.encode(text).unwrap();
        assert_eq!(back.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(back.decode(&ids).unwrap(), there.decode(&ids).unwrap(), "{text:?}");
    }
}

/// Checks that `files` are refused in one sentence that contains `part`.
#[track_caller]
fn refused(files: &TokenizerFiles, part: &str) {
    let message = files.write(&mut Metadata::new()).expect_err(part).to_string();
    assert!(message.contains(part) && message.contains("tokenizer.json") && !message.contains('\n'), "{message}");
}

/// The numbers in the list under `key`.
fn numbers(metadata: &Metadata, key: &str) -> Vec<f64> {
    let Some(Stored::List(list)) = metadata.get(key) else { panic!("no {key}") };
    let number = |value: &Stored| match *value {
        Stored::I32(number) => f64::from(number),
        Stored::F32(number) => f64::from(number),
        _ => panic!("{value:?}"),
    };
    list.iter().map(number).collect()
}

fn text(text: &str) -> Stored {
    Stored::Text(text.to_owned())
}

#[test]
fn the_bundled_tokenizer_comes_back() {
    let files = bundled_files();
    let metadata = written(&files);
    check_same(&files, &metadata);
    assert_eq!(metadata.get("tokenizer.ggml.model"), Some(&text("gpt2")));
    assert_eq!(metadata.get("tokenizer.ggml.pre"), Some(&text("gpt-2")));
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Stored::U32(0)));
    assert_eq!(metadata.get("tokenizer.ggml.eos_token_id"), Some(&Stored::U32(0)));
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Stored::Bool(false)));
    let types = numbers(&metadata, "tokenizer.ggml.token_type");
    assert_eq!((types.len(), types[0], types[1]), (1024, 3.0, 1.0));
    assert_eq!(special_tokens(SUBJECT, &metadata).unwrap(), SpecialTokens { begin: Some(0), ends: vec![0] });
}

/// A `pre_tokenizer` of expressions, followed by the step that makes bytes.
fn splits(expressions: &[&str]) -> Value {
    let split =
        |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let steps: Vec<Value> = expressions.iter().map(split).chain([bytes]).collect();
    json!({"type": "Sequence", "pretokenizers": steps})
}

#[test]
fn rules_for_words_are_known_by_what_they_do() {
    let words = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen = llama.replace("{1,3}", "");
    let seed = llama.replace("{1,3}", "{1}").replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+");
    let mut removed = splits(&[&qwen]);
    removed["pretokenizers"][0]["behavior"] = json!("Removed");
    removed["pretokenizers"][0]["invert"] = json!(true);
    let hundreds = splits(&["[0-9][0-9][0-9]"])["pretokenizers"][0].clone();
    let punctuation = json!({"type": "Punctuation", "behavior": "Contiguous"});
    let mut coder = splits(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]);
    coder["pretokenizers"].as_array_mut().unwrap().insert(4, digits(true));
    let bloom = " ?[^(\\s|[.,!?…。，、।۔،])]+";
    let cases = [
        ("gpt-2", false, words.clone()),
        ("smollm", false, sequence(vec![digits(true), words.clone()])),
        ("llama-bpe", true, splits(&[llama])),
        ("dbrx", false, splits(&[llama])),
        ("qwen2", false, splits(&[&qwen])),
        ("qwen2", false, removed),
        ("seed-coder", false, splits(&[&seed])),
        ("deepseek-coder", false, coder),
        ("falcon", false, sequence(vec![punctuation, words, digits(false), hundreds])),
        ("bloom", false, splits(&[bloom])),
        ("viking", false, splits(&[bloom, r"\p{N}"])),
    ];
    for (name, ignore_merges, pre_tokenizer) in cases {
        let mut files = bundled_files();
        files.tokenizer["pre_tokenizer"] = pre_tokenizer;
        files.tokenizer["model"]["ignore_merges"] = json!(ignore_merges);
        let metadata = written(&files);
        assert_eq!(metadata.get("tokenizer.ggml.pre"), Some(&text(name)));
        check_same(&files, &metadata);
    }
}

/// Every name of a rule is read, and the rules differ where they should.
#[test]
fn names_of_rules_are_read() {
    let mut metadata = written(&bundled_files());
    let ids = |metadata: &Metadata| tokenizer(&tokenizer_json(SUBJECT, metadata).unwrap()).encode("It's 1945").unwrap();
    let plain = ids(&metadata);
    for (name, begins) in
        [("starcoder", false), ("glm4", false), ("tekken", true), ("deepseek-v3", false), ("llama3", true)]
    {
        metadata.set("tokenizer.ggml.pre", text(name));
        // A file that does not say whether a token begins a text leaves it to the rule.
        let unsaid = without(&metadata, "tokenizer.ggml.add_bos_token");
        assert_eq!(ids(&unsaid).len(), ids(&metadata).len() + usize::from(begins), "{name}");
        assert_eq!(ids(&metadata).first(), plain.first(), "{name}");
    }
}

/// `metadata` without the pair of `key`.
fn without(metadata: &Metadata, key: &str) -> Metadata {
    let mut rest = Metadata::new();
    for (other, value) in metadata.iter().filter(|(other, _)| *other != key) {
        rest.set(other, value.clone());
    }
    rest
}

#[test]
fn tokens_around_a_text() {
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let entry = |id: &str, number: u32| json!({"id": id, "ids": [number], "tokens": [id]});
    let mut files = bundled_files();
    let end = "<|endoftext|>";
    files.tokenizer["post_processor"] = json!({
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing", "single": [token("!"), sequence, token(end)], "pair": [token("!"), sequence],
             "special_tokens": {"!": entry("!", 1), end: entry(end, 0)}},
        ],
    });
    files.tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": 1, "content": "!", "special": true}));
    let added = &mut files.tokenizer["added_tokens"][1];
    for key in ["single_word", "lstrip", "rstrip", "normalized"] {
        added[key] = json!(false);
    }
    let metadata = written(&files);
    check_same(&files, &metadata);
    // What a tokenizer does to every text says more than its settings.
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Stored::U32(1)));
    assert_eq!(metadata.get("tokenizer.ggml.add_eos_token"), Some(&Stored::Bool(true)));
    assert_eq!(special_tokens(SUBJECT, &metadata).unwrap(), SpecialTokens { begin: Some(1), ends: vec![0] });

    let template = &mut files.tokenizer["post_processor"]["processors"][1];
    template["single"] = json!([token("!"), token(end), sequence]);
    let notes = files.write(&mut Metadata::new()).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("! and <|endoftext|> before a text"), "{notes:?}");
    files.tokenizer["post_processor"] = Value::Null;
    files.settings.insert("add_bos_token".into(), json!(true));
    let mut metadata = Metadata::new();
    let notes = files.write(&mut metadata).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("add_bos_token"), "{notes:?}");
    assert_eq!(tokenizer(&tokenizer_json(SUBJECT, &metadata).unwrap()).encode("!").unwrap(), [0, 1]);
    files.settings.remove("bos_token");
    files.begin = None;
    refused(&files, "\"add_bos_token\": true");
    files.settings.remove("add_bos_token");
    files.tokenizer["post_processor"] = json!({"type": "Other"});
    refused(&files, "post_processor of type \"Other\"");
}

#[test]
fn ends_templates_and_rows_without_a_token() {
    let mut files = bundled_files();
    files.vocab_size = 1027;
    files.ends = vec![0, 5, 7, 9];
    files.settings.insert("pad_token".into(), json!({"content": "#"}));
    files.settings.insert(
        "chat_template".into(),
        json!([{"name": "default", "template": "{{ a }}"}, {"name": "tools", "template": "{{ b }}"}]),
    );
    let mut metadata = Metadata::new();
    let notes = files.write(&mut metadata).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("more tokens that end a text: )"), "{notes:?}");
    assert_eq!(special_tokens(SUBJECT, &metadata).unwrap().ends, [0, 5, 7]);
    assert_eq!(metadata.get("tokenizer.chat_template"), Some(&text("{{ a }}")));
    assert_eq!(metadata.get("tokenizer.chat_template.tools"), Some(&text("{{ b }}")));
    assert_eq!(metadata.get("tokenizer.ggml.padding_token_id"), Some(&Stored::U32(3)));
    let Some(Stored::List(tokens)) = metadata.get("tokenizer.ggml.tokens") else { panic!("no tokens") };
    assert_eq!(tokens[1024..], [text("[PAD1024]"), text("[PAD1025]"), text("[PAD1026]")]);
    assert_eq!(numbers(&metadata, "tokenizer.ggml.token_type")[1023..], [1.0, 5.0, 5.0, 5.0]);
    check_same(&files, &metadata);

    // The file of a template counts more. Added tokens without a row are left out.
    files.ends.clear();
    files.chat_template = Some("{{ c }}".into());
    files.tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": 1027, "content": "<image>"}));
    let notes = files.write(&mut metadata).unwrap();
    assert!(notes.len() == 1 && notes[0].ends_with("<image>"), "{notes:?}");
    assert_eq!(metadata.get("tokenizer.chat_template"), Some(&text("{{ c }}")));
    files.vocab_size = 1023;
    refused(&files, "beyond the 1023 rows");
}

/// A tokenizer whose tokens are characters, with the tokens `pieces` that merges make, the first of them before all
/// others. Every pair that makes a token is a merge, as in tokenizers that come from SentencePiece.
fn of_characters(pieces: &[&str], prefix: bool) -> TokenizerFiles {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(pieces.iter().map(|&piece| piece.to_owned()));
    let mut characters: Vec<char> = pieces.concat().chars().chain("xyz,.éд".chars()).collect();
    characters.sort_unstable();
    characters.dedup();
    tokens.extend(characters.into_iter().map(String::from));
    let mut merges = Vec::new();
    for piece in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if [left, right].iter().all(|side| tokens.iter().any(|token| token == side)) {
                merges.push(json!([left, right]));
            }
        }
    }
    let special = |(id, content): (usize, &str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"].into_iter().enumerate().map(special).collect();
    let vocabulary: serde_json::Map<String, Value> = tokens.iter().cloned().zip((0..).map(Value::from)).collect();
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let tokenizer = json!({
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
                  "merges": merges},
    });
    let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    TokenizerFiles {
        subject: "tokenizer.json".into(),
        tokenizer,
        settings: settings.as_object().unwrap().clone(),
        chat_template: None,
        begin: None,
        ends: Vec::new(),
        model_type: "llama".into(),
        vocab_size: tokens.len(),
    }
}

const PIECES: [&str; 14] =
    ["▁t", "he", "ab", "▁the", "▁a", "ba", "aba", "▁▁", "aa", "▁ab", "abab", "in", "▁▁▁▁", "nin"];

/// The tokens of a text by the definition of SentencePiece: of all neighbours that make a token, those with the highest
/// score are merged first, and the left ones of equals.
fn by_scores(text: &str, tokens: &[&str], scores: &[f64]) -> Vec<u32> {
    let id = |text: &str| tokens.iter().position(|token| *token == text);
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f64, usize)> = None;
        for at in 1..symbols.len() {
            let score = id(&format!("{}{}", symbols[at - 1], symbols[at])).map(|id| scores[id]);
            if let Some(score) = score.filter(|score| best.is_none_or(|(highest, _)| *score > highest)) {
                best = Some((score, at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = symbols.remove(at);
        symbols[at - 1].push_str(&right);
    }
    let mut ids = Vec::new();
    for symbol in symbols {
        match id(&symbol) {
            Some(id) => ids.push(id as u32),
            None => ids.extend(symbol.bytes().map(|byte| 3 + u32::from(byte))),
        }
    }
    ids
}

#[test]
fn merges_become_scores_and_come_back() {
    let files = of_characters(&PIECES, true);
    let metadata = written(&files);
    check_same(&files, &metadata);
    assert_eq!(metadata.get("tokenizer.ggml.model"), Some(&text("llama")));
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Stored::Bool(true)));
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Stored::Bool(true)));
    let types = numbers(&metadata, "tokenizer.ggml.token_type");
    assert_eq!(types[..4], [2.0, 3.0, 3.0, 6.0]);
    let scores = numbers(&metadata, "tokenizer.ggml.scores");
    let of_pieces: Vec<f64> = (0..PIECES.len()).map(|place| -(place as f64)).collect();
    assert_eq!(scores[259..259 + PIECES.len()], of_pieces);
    assert!(scores.iter().all(|score| *score >= -(PIECES.len() as f64)));

    let Some(Stored::List(list)) = metadata.get("tokenizer.ggml.tokens") else { panic!("no tokens") };
    let tokens: Vec<&str> = list.iter().map(|value| if let Stored::Text(text) = value { text } else { "" }).collect();
    let back = tokenizer(&tokenizer_json(SUBJECT, &metadata).unwrap());
    for text in ["the abababa", "thethe  the", "aaaaabaab ab in nin", "é д 你 x,y", "    the     aa"] {
        let marked = format!("▁{}", text.replace(' ', "▁"));
        let expected: Vec<u32> = [1].into_iter().chain(by_scores(&marked, &tokens, &scores)).collect();
        assert_eq!(back.encode(text).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn spaces_are_treated_as_the_file_says() {
    let mut files = of_characters(&PIECES, false);
    // All spaces are marked, so that this step has nothing to do.
    files.tokenizer["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    // Merges make this token, although it is an added one, because its marks are not spaces when it is looked for.
    let run = files.tokenizer["model"]["vocab"]["▁▁"].clone();
    let added = json!({"id": run, "content": "▁▁", "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": false});
    files.tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    let metadata = written(&files);
    check_same(&files, &metadata);
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Stored::Bool(false)));

    let mut files = of_characters(&PIECES, true);
    files.tokenizer["normalizer"] = Value::Null;
    files.tokenizer["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let mut metadata = Metadata::new();
    let notes = files.write(&mut metadata).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("space"), "{notes:?}");
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Stored::Bool(true)));
    files.tokenizer["pre_tokenizer"]["split"] = json!(true);
    refused(&files, "Metaspace");
}

#[test]
fn gemma_4_keeps_its_merges() {
    let mut files = of_characters(&PIECES, false);
    files.model_type = "gemma4_text".into();
    // Without this merge the order does not follow from scores.
    files.tokenizer["model"]["merges"].as_array_mut().unwrap().retain(|merge| merge != &json!(["a", "ba"]));
    let metadata = written(&files);
    check_same(&files, &metadata);
    assert_eq!(metadata.get("tokenizer.ggml.model"), Some(&text("gemma4")));
    assert!(metadata.get("tokenizer.ggml.scores").is_none());
    files.model_type = "gemma3_text".into();
    refused(&files, "no merge of \"a\" and \"ba\"");
    let mut across = of_characters(&["a\n", "he"], false);
    across.model_type = "gemma4".into();
    refused(&across, "across the end of a line");
}

#[test]
fn what_a_gguf_file_cannot_describe_is_refused() {
    let change = |files: &TokenizerFiles, place: &str, value: Value| {
        let mut files = files.clone();
        *files.tokenizer.pointer_mut(place).unwrap() = value;
        files
    };
    let bytes = bundled_files();
    for kind in ["WordPiece", "Unigram", "WordLevel"] {
        refused(&change(&bytes, "/model/type", json!(kind)), kind);
    }
    refused(&change(&bytes, "/pre_tokenizer", splits(&[r"\w+"])), r"\\w+");
    refused(&change(&bytes, "/pre_tokenizer/add_prefix_space", json!(true)), "pre_tokenizer");
    refused(&change(&bytes, "/model/ignore_merges", json!(true)), "whole words");
    refused(&change(&bytes, "/normalizer", json!({"type": "Lowercase"})), "Lowercase");
    refused(&change(&bytes, "/model/merges/0", json!(["a", "nothing"])), "nothing");
    refused(&change(&bytes, "/model/vocab/!", json!(2)), "two texts");
    refused(&change(&bytes, "/model/end_of_word_suffix", json!("</w>")), "end of words");
    let composing = change(&bytes, "/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]}));
    assert!(composing.write(&mut Metadata::new()).unwrap()[0].contains("NFC"));

    let characters = of_characters(&PIECES, true);
    refused(&change(&characters, "/model/byte_fallback", json!(false)), "for a byte");
    refused(&change(&characters, "/normalizer", json!({"type": "NFKC"})), "NFKC");
    refused(&change(&characters, "/normalizer", Value::Null), "pre_tokenizer");
    // One of the two merges of a token stands at the end of the list.
    let merges = characters.tokenizer["model"]["merges"].as_array().unwrap();
    let twice = merges.iter().position(|merge| merge == &json!(["ab", "a"])).unwrap();
    let mut moved = merges.clone();
    let merge = moved.remove(twice);
    moved.push(merge);
    refused(&change(&characters, "/model/merges", json!(moved)), "between those of other tokens");
}

/// Checks that reading is refused in one sentence that contains `part`.
#[track_caller]
fn unreadable(metadata: &Metadata, part: &str) {
    let message = tokenizer_json(SUBJECT, metadata).expect_err(part).to_string();
    assert!(message.starts_with("model.gguf: ") && message.contains(part) && !message.contains('\n'), "{message}");
}

#[test]
fn what_is_not_known_is_not_read() {
    let set = |metadata: &Metadata, key: &str, value: Stored| {
        let mut metadata = metadata.clone();
        metadata.set(key, value);
        metadata
    };
    let bytes = written(&bundled_files());
    unreadable(&Metadata::new(), "no tokenizer.ggml.model");
    unreadable(&set(&bytes, "tokenizer.ggml.model", text("t5")), "the kind \"t5\"");
    unreadable(&set(&bytes, "tokenizer.ggml.pre", text("kimi-k2")), "\"kimi-k2\"");
    unreadable(&without(&bytes, "tokenizer.ggml.pre"), "no tokenizer.ggml.pre");
    unreadable(&without(&bytes, "tokenizer.ggml.merges"), "no tokenizer.ggml.merges");
    unreadable(&set(&bytes, "tokenizer.ggml.merges", Stored::List(vec![text("q zzz")])), "q zzz");
    unreadable(&set(&bytes, "tokenizer.ggml.token_type", Stored::List(vec![Stored::I32(1)])), "1 types");
    unreadable(&set(&bytes, "tokenizer.ggml.tokens", Stored::List(vec![text("a"), text("a")])), "twice");
    let begins = set(&bytes, "tokenizer.ggml.add_bos_token", Stored::Bool(true));
    unreadable(&set(&begins, "tokenizer.ggml.bos_token_id", Stored::U32(4000)), "the id of no token");
    unreadable(&without(&begins, "tokenizer.ggml.bos_token_id"), "no tokenizer.ggml.bos_token_id");

    let characters = written(&of_characters(&PIECES, true));
    let count = numbers(&characters, "tokenizer.ggml.scores").len();
    let scores = |score: f32| Stored::List(vec![Stored::F32(score); count]);
    unreadable(&set(&characters, "tokenizer.ggml.scores", scores(-1000.0)), "the same score -1000");
    unreadable(&set(&characters, "tokenizer.ggml.scores", scores(f32::NAN)), "NaN");
    unreadable(&without(&characters, "tokenizer.ggml.scores"), "no tokenizer.ggml.scores");
}

#[test]
fn no_value_makes_the_reader_panic() {
    let odd = [
        Stored::U8(255),
        Stored::I32(-1),
        Stored::U64(u64::MAX),
        Stored::F32(f32::INFINITY),
        Stored::Bool(true),
        text(""),
        text("gpt2"),
        text("▁ "),
        Stored::List(vec![]),
        Stored::List(vec![text(" "), text("é "), text("  ")]),
        Stored::List(vec![Stored::I32(7); 1024]),
        Stored::List(vec![Stored::I32(4); 1024]),
        Stored::List(vec![Stored::F32(0.0), Stored::F32(f32::NAN)]),
    ];
    let mut read = 0;
    for metadata in [written(&bundled_files()), written(&of_characters(&PIECES, true))] {
        let keys: Vec<String> = metadata.iter().map(|(key, _)| key.to_owned()).collect();
        for key in keys {
            for value in &odd {
                let mut changed = metadata.clone();
                changed.set(&*key, value.clone());
                let _ = special_tokens(SUBJECT, &changed);
                if let Ok(json) = tokenizer_json(SUBJECT, &changed) {
                    read += 1;
                    let tokenizer = Tokenizer::from_bytes(SUBJECT, json.to_string().as_bytes());
                    let _ = tokenizer
                        .map(|tokenizer| tokenizer.encode("the 12 ab\n").and_then(|ids| tokenizer.decode(&ids)));
                }
            }
        }
    }
    assert!(read > 10, "only {read} were read");
}
