//! Makes the pairs of a GGUF file from a `tokenizer.json`.

use std::collections::HashSet;

use serde_json::Value;

use super::files::TokenizerFiles;
use super::scores::{self, Pair};
use super::vocabulary::Vocabulary;
use super::{Kind, SPACE_MARK, TokenType, byte_token, key, rules, specials};
use crate::checkpoint::gguf::metadata::{Metadata, Value as Stored};
use crate::{Error, Result};

/// Tokens of Gemma 4 that llama.cpp must show, because a chat is parsed by them.
const SHOWN: [&str; 7] =
    ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

/// How a tokenizer treats spaces whose tokens are characters.
struct Spaces {
    /// Whether a space is put before a text.
    prefix: bool,
    /// Whether it is left out in some places where llama.cpp puts one.
    sparing: bool,
}

impl TokenizerFiles {
    /// Writes the pairs for the tokenizer. Returns notes, as sentences without a full stop: what llama.cpp does
    /// otherwise than the tokenizer.
    ///
    /// Errors: `Error::Input` if llama.cpp has no such tokenizer. These are tokenizers of other kinds than BPE, rules
    /// for words that are not in its list, and merges of characters that do not follow from scores.
    pub fn write(&self, metadata: &mut Metadata) -> Result<Vec<String>> {
        self.try_write(metadata).map_err(|found| {
            Error::input(
                &*self.subject,
                found,
                "a tokenizer that a GGUF file can describe",
                "write the model in another format",
            )
        })
    }

    /// As [`TokenizerFiles::write`], with what was found as the error.
    fn try_write(&self, metadata: &mut Metadata) -> Result<Vec<String>, String> {
        let json = &self.tokenizer;
        let model = &json["model"];
        match model["type"].as_str() {
            Some("BPE") => {}
            // Files of the first versions of the library do not say it.
            None if model.get("merges").is_some() => {}
            _ => return Err(format!("a tokenizer of type {}", model["type"])),
        }
        for (key, what) in
            [("continuing_subword_prefix", "marks inside words"), ("end_of_word_suffix", "marks at the end of words")]
        {
            if model[key].as_str().is_some_and(|mark| !mark.is_empty()) {
                return Err(format!("tokens with {what}"));
            }
        }
        let vocabulary = Vocabulary::of(json, self.vocab_size)?;
        let merges = merges(model, &vocabulary)?;
        let mut notes = Vec::new();
        if rules::is_of_bytes(&json["pre_tokenizer"]) {
            notes.extend(self.write_bytes(&vocabulary, &merges, metadata)?);
        } else {
            notes.extend(self.write_characters(&vocabulary, &merges, metadata)?);
        }
        notes.extend(specials::write(self, &vocabulary, metadata)?);
        specials::write_templates(self, metadata)?;
        notes.extend(differences(&vocabulary));
        Ok(notes)
    }

    /// Writes a tokenizer whose tokens are bytes. Returns a note if it normalizes texts.
    fn write_bytes(
        &self,
        vocabulary: &Vocabulary<'_>,
        merges: &[Pair<'_>],
        metadata: &mut Metadata,
    ) -> Result<Option<String>, String> {
        let (model, rule) = (&self.tokenizer["model"], &self.tokenizer["pre_tokenizer"]);
        let Some(rule) = rules::of(rule, model["ignore_merges"] == true) else {
            let whole = if model["ignore_merges"] == true { " and whole words" } else { "" };
            return Err(format!("a pre_tokenizer that llama.cpp lacks ({rule}{whole})"));
        };
        let composes = composes(&self.tokenizer["normalizer"])?;
        metadata.set(key::MODEL, Stored::Text(Kind::Bytes.name().to_owned()));
        metadata.set(key::RULE, Stored::Text(rule.name().to_owned()));
        self.write_tokens(Kind::Bytes, vocabulary, metadata)?;
        write_merges(merges, metadata);
        let note = "llama.cpp does not compose characters (NFC), so texts with decomposed characters get other tokens";
        Ok(composes.then(|| note.to_owned()))
    }

    /// Writes a tokenizer whose tokens are characters. Returns a note if llama.cpp puts in more spaces.
    fn write_characters(
        &self,
        vocabulary: &Vocabulary<'_>,
        merges: &[Pair<'_>],
        metadata: &mut Metadata,
    ) -> Result<Option<String>, String> {
        let model = &self.tokenizer["model"];
        let spaces = spaces(&self.tokenizer)?;
        if model["ignore_merges"] == true {
            return Err("\"ignore_merges\": true for tokens of characters".to_owned());
        }
        for byte in 0..=u8::MAX {
            let has = |text: &str| vocabulary.ids.contains_key(text);
            let is_char = byte.is_ascii() && has((byte as char).encode_utf8(&mut [0; 4]));
            if model["byte_fallback"] != true || !(is_char || has(&byte_token(byte))) {
                return Err(format!("no token {} for a byte", byte_token(byte)));
            }
        }
        let listed = self.model_type.starts_with("gemma4") && !spaces.prefix;
        let kind = if listed { Kind::Characters } else { Kind::Scored };
        metadata.set(key::MODEL, Stored::Text(kind.name().to_owned()));
        self.write_tokens(kind, vocabulary, metadata)?;
        if listed {
            let is_mixed = |text: &str| text.contains('\n') && text.chars().any(|char| char != '\n');
            if let Some((left, right)) = merges.iter().find(|(left, right)| is_mixed(&format!("{left}{right}"))) {
                return Err(format!("a merge of {left:?} and {right:?} across the end of a line"));
            }
            write_merges(merges, metadata);
        } else {
            metadata.set(key::RULE, Stored::Text("default".to_owned()));
            metadata.set(key::SCORES, scores(merges, vocabulary)?);
        }
        metadata.set(key::ADD_SPACE, Stored::Bool(spaces.prefix));
        let note = "llama.cpp puts a space before every text and behind special tokens, which the tokenizer does not";
        Ok(spaces.sparing.then(|| note.to_owned()))
    }

    /// Writes the texts and types of all tokens. Rows of the embedding without a token get a name.
    fn write_tokens(&self, kind: Kind, vocabulary: &Vocabulary<'_>, metadata: &mut Metadata) -> Result<(), String> {
        let model = &self.tokenizer["model"];
        let mut texts: Vec<String> = Vec::with_capacity(vocabulary.texts.len());
        let mut types: Vec<Stored> = Vec::with_capacity(vocabulary.texts.len());
        for (id, text) in vocabulary.texts.iter().enumerate() {
            let Some(text) = *text else {
                texts.push(format!("[PAD{id}]"));
                types.push(Stored::I32(TokenType::Unused as i32));
                continue;
            };
            let added = vocabulary.added.get(&(id as u32));
            let token_type = match added {
                _ if kind != Kind::Bytes && model["unk_token"] == text => TokenType::Unknown,
                Some(_) if kind == Kind::Characters && SHOWN.contains(&text) => TokenType::UserDefined,
                Some(added) if added.special || looks_special(text) => TokenType::Control,
                Some(added) if kind != Kind::Bytes && added.merged => TokenType::Normal,
                Some(_) => TokenType::UserDefined,
                None if kind != Kind::Bytes && is_byte(text) => TokenType::Byte,
                None => TokenType::Normal,
            };
            // llama.cpp looks for these tokens before it marks the spaces, whose marks the tokenizer has looked for.
            let marked = kind == Kind::Scored && token_type == TokenType::UserDefined;
            texts.push(if marked { text.replace(SPACE_MARK, " ") } else { text.to_owned() });
            types.push(Stored::I32(token_type as i32));
        }
        let mut known = HashSet::new();
        if let Some(twice) = texts.iter().find(|text| text.is_empty() || !known.insert(text.as_str())) {
            return Err(format!("an empty token, or two tokens that llama.cpp cannot tell apart ({twice:?})"));
        }
        metadata.set(key::TOKENS, Stored::List(texts.into_iter().map(Stored::Text).collect()));
        metadata.set(key::TYPES, Stored::List(types));
        Ok(())
    }
}

/// The merges of a model in order. Files have them as pairs, or as two texts with a space between them.
///
/// Errors, as what was found: a malformed list; a merge of what is no token, or into what is none.
fn merges<'a>(model: &'a Value, vocabulary: &Vocabulary<'_>) -> Result<Vec<Pair<'a>>, String> {
    let list = model["merges"].as_array().ok_or("no merges")?;
    let mut merged = String::new();
    let mut pairs = Vec::with_capacity(list.len());
    for entry in list {
        let pair = match entry {
            Value::String(text) => text.split_once(' '),
            other => other[0].as_str().zip(other[1].as_str()),
        };
        let malformed = || format!("a merge {entry}");
        let (left, right) = pair.ok_or_else(malformed)?;
        merged.clear();
        merged.extend([left, right]);
        let known = [left, right, &merged].iter().all(|text| vocabulary.ids.contains_key(text));
        if !known || merged.contains(' ') {
            return Err(malformed());
        }
        pairs.push((left, right));
    }
    Ok(pairs)
}

fn write_merges(merges: &[Pair<'_>], metadata: &mut Metadata) {
    let texts = merges.iter().map(|(left, right)| Stored::Text(format!("{left} {right}")));
    metadata.set(key::MERGES, Stored::List(texts.collect()));
}

/// The score of every token. Tokens that no merge makes come behind all others.
fn scores(merges: &[Pair<'_>], vocabulary: &Vocabulary<'_>) -> Result<Stored, String> {
    let ordinary = |text: &str| vocabulary.is_ordinary(text) && !is_byte(text);
    let mut merged = String::new();
    let mut made = Vec::with_capacity(merges.len());
    for &(left, right) in merges {
        merged.clear();
        merged.extend([left, right]);
        // An added token is found in the text before anything is merged.
        match (ordinary(&merged), ordinary(left) && ordinary(right)) {
            (false, _) => {}
            (true, true) => made.push((left, right)),
            (true, false) => return Err(format!("a merge of the added token {left:?} or {right:?}")),
        }
    }
    let texts = vocabulary.texts.iter().flatten().copied();
    let scores = scores::from_merges(&made, texts.filter(|text| ordinary(text)), ordinary)?;
    let last = scores.values().copied().fold(0.0, f32::min) - 1.0;
    let score = |text: &Option<&str>| text.and_then(|text| scores.get(text).copied()).unwrap_or(last);
    Ok(Stored::List(vocabulary.texts.iter().map(|text| Stored::F32(score(text))).collect()))
}

/// Whether a `normalizer` composes characters. Errors, as what was found: it does anything else.
fn composes(normalizer: &Value) -> Result<bool, String> {
    match (normalizer["type"].as_str(), normalizer["normalizers"].as_array()) {
        (None, _) if normalizer.is_null() => Ok(false),
        (Some("NFC"), _) => Ok(true),
        (Some("Sequence"), Some(parts)) => parts.iter().try_fold(false, |before, part| Ok(composes(part)? || before)),
        _ => Err(format!("a normalizer that llama.cpp lacks ({normalizer})")),
    }
}

/// How a tokenizer whose tokens are characters treats spaces. Errors, as what was found: it does anything else.
fn spaces(tokenizer: &Value) -> Result<Spaces, String> {
    let (normalizer, pre_tokenizer) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    let mark = SPACE_MARK.to_string();
    let parts = match normalizer["normalizers"].as_array() {
        Some(parts) => parts.iter().collect(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![normalizer],
    };
    let mut spaces = Spaces { prefix: false, sparing: false };
    let mut marked = false;
    for part in parts {
        match part["type"].as_str() {
            Some("Prepend") if part["prepend"] == mark => spaces.prefix = true,
            Some("Replace") if part["pattern"]["String"] == " " && part["content"] == mark => marked = true,
            _ => return Err(format!("a normalizer that llama.cpp lacks ({part})")),
        }
    }
    match pre_tokenizer["type"].as_str() {
        None if pre_tokenizer.is_null() && marked => Ok(spaces),
        // All spaces are marked already.
        Some("Split") if marked && pre_tokenizer["pattern"]["String"] == " " => Ok(spaces),
        Some("Metaspace") if pre_tokenizer["replacement"] == mark && pre_tokenizer["split"] == false => {
            match pre_tokenizer["prepend_scheme"].as_str() {
                Some("never") => Ok(spaces),
                // There is none before a text that begins with a space, and perhaps none behind special tokens.
                _ => Ok(Spaces { prefix: true, sparing: true }),
            }
        }
        _ => Err(format!("a pre_tokenizer that llama.cpp lacks ({pre_tokenizer})")),
    }
}

/// Notes on tokens that llama.cpp treats otherwise, or leaves out.
fn differences(vocabulary: &Vocabulary<'_>) -> Vec<String> {
    let text = |id: &u32| vocabulary.texts[*id as usize].unwrap_or_default();
    let bounded: Vec<&str> =
        vocabulary.added.iter().filter(|(_, token)| token.bounded).map(|(id, _)| text(id)).collect();
    let mut notes = Vec::new();
    if let Some(first) = bounded.first() {
        notes.push(format!(
            "llama.cpp does not look at the text around {first} and {} other tokens, and the tokenizer does",
            bounded.len() - 1
        ));
    }
    if !vocabulary.beyond.is_empty() {
        let tokens = vocabulary.beyond.join(", ");
        notes.push(format!("the GGUF file lacks these tokens, for which the model has no embedding: {tokens}"));
    }
    notes
}

/// Whether llama.cpp takes an added token for one with a meaning, even if the tokenizer does not say so.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// Whether a token stands for a single byte.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}
