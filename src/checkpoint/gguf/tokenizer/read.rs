//! Makes a `tokenizer.json` from the pairs of a GGUF file.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::rules::{self, Rule};
use super::{Kind, SPACE_MARK, TokenType, key, scores, specials};
use crate::checkpoint::gguf::metadata::{Metadata, Value as Stored};
use crate::{Error, Result};

/// The tokens that begin and end a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token that begins a text.
    pub begin: Option<u32>,
    /// The tokens that end a text, without repetition. Those that the file names come first.
    pub ends: Vec<u32>,
}

/// The `tokenizer.json` of the tokenizer in `metadata`, which [`Tokenizer`](crate::tokenizer::Tokenizer) reads.
/// `subject` is the name of the file in messages.
///
/// Errors: `Error::Input` if the pairs describe no tokenizer, or one of another kind than those in the table of the
/// module, or one whose rule for words is unknown.
pub fn tokenizer_json(subject: &str, metadata: &Metadata) -> Result<Value> {
    let pairs = Pairs { metadata };
    pairs.tokenizer_json().map_err(|found| refuse(subject, found))
}

/// The tokens that begin and end a text, for the tokenizer in `metadata`. Beside the tokens that the file names these
/// are all at which llama.cpp ends a generation. Errors: as [`tokenizer_json`].
pub fn special_tokens(subject: &str, metadata: &Metadata) -> Result<SpecialTokens> {
    let pairs = Pairs { metadata };
    pairs.special_tokens().map_err(|found| refuse(subject, found))
}

fn refuse(subject: &str, found: String) -> Error {
    let kinds = Kind::ALL.map(|kind| format!("\"{}\"", kind.name())).join(", ");
    Error::input(
        subject,
        found,
        format!("a tokenizer of one of the kinds {kinds}, with all that belongs to it"),
        "download the file again, or one that was made by a current llama.cpp",
    )
}

/// The pairs of a file. Errors of all methods are what was found.
struct Pairs<'a> {
    metadata: &'a Metadata,
}

/// The tokens of a file.
struct Tokens<'a> {
    /// The text of every id.
    texts: Vec<&'a str>,
    types: Vec<TokenType>,
}

impl<'a> Pairs<'a> {
    fn tokenizer_json(&self) -> Result<Value, String> {
        let kind = self.kind()?;
        let tokens = self.tokens()?;
        let rule = match kind {
            Kind::Bytes => Some(self.rule()?),
            Kind::Scored | Kind::Characters => None,
        };
        let prefix = kind == Kind::Scored && self.flag(key::ADD_SPACE)?.unwrap_or(true);
        let merges = match kind {
            Kind::Scored => self.merges_of_scores(&tokens)?,
            Kind::Bytes | Kind::Characters => self.merges(&tokens)?,
        };
        let unknown = match kind {
            Kind::Bytes => None,
            Kind::Scored | Kind::Characters => self.id(key::UNKNOWN, &tokens)?.map(|id| tokens.texts[id as usize]),
        };
        let pre_tokenizer = match (kind, rule) {
            (Kind::Bytes, Some(rule)) => rule.pre_tokenizer(),
            // llama.cpp merges nothing across the end of a line.
            (Kind::Characters, _) => rules::split(r"\n+"),
            _ => Value::Null,
        };
        let vocabulary: Map<String, Value> =
            tokens.texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect();
        let model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": kind != Kind::Bytes,
            "byte_fallback": kind != Kind::Bytes,
            "ignore_merges": rule.is_some_and(|rule| rule.ignore_merges),
            "vocab": vocabulary,
            "merges": merges,
        });
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": tokens.added(),
            "normalizer": normalizer(kind, prefix),
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(kind, rule, &tokens)?,
            "decoder": decoder(kind, prefix),
            "model": model,
        }))
    }

    fn special_tokens(&self) -> Result<SpecialTokens, String> {
        let kind = self.kind()?;
        let tokens = self.tokens()?;
        let mut ends = Vec::new();
        let named = [self.end(kind, &tokens)?, self.id(key::EOT, &tokens)?, self.id(key::EOM, &tokens)?];
        let by_text = (0..).zip(&tokens.texts).filter(|(_, text)| specials::ends_text(text)).map(|(id, _)| id);
        for id in named.into_iter().flatten().chain(by_text) {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        ends.retain(|&id| !tokens.is_spared(id));
        Ok(SpecialTokens { begin: self.begin(kind, &tokens)?, ends })
    }

    fn kind(&self) -> Result<Kind, String> {
        let name = self.text(key::MODEL)?.ok_or_else(|| format!("no {}", key::MODEL))?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| format!("a tokenizer of the kind {name:?}"))
    }

    fn rule(&self) -> Result<&'static Rule, String> {
        let name = self.text(key::RULE)?.ok_or_else(|| format!("no {}, as in files of early 2024", key::RULE))?;
        rules::named(name).ok_or_else(|| format!("{} {name:?}, an unknown rule for words", key::RULE))
    }

    fn tokens(&self) -> Result<Tokens<'a>, String> {
        let texts = self.texts(key::TOKENS)?.ok_or_else(|| format!("no {}", key::TOKENS))?;
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(format!("{} tokens", texts.len()));
        }
        let mut known = HashSet::with_capacity(texts.len());
        if let Some(twice) = texts.iter().find(|text| text.is_empty() || !known.insert(**text)) {
            return Err(format!("an empty token, or one that occurs twice ({twice:?})"));
        }
        let types = match self.list(key::TYPES)? {
            None => vec![TokenType::Normal; texts.len()],
            Some(list) => {
                let token_type = |value: &Stored| {
                    let number = whole(value).ok_or_else(|| format!("{} with {value:?}", key::TYPES))?;
                    let known = TokenType::ALL.into_iter().find(|known| *known as i64 == number);
                    known.ok_or_else(|| format!("a token of type {number}"))
                };
                list.iter().map(token_type).collect::<Result<Vec<_>, _>>()?
            }
        };
        if types.len() != texts.len() {
            return Err(format!("{} tokens and {} types", texts.len(), types.len()));
        }
        Ok(Tokens { texts, types })
    }

    /// The merges in the file. The first space of an entry behind its first character is the one between the two
    /// texts.
    fn merges(&self, tokens: &Tokens<'_>) -> Result<Vec<Value>, String> {
        let list = self.texts(key::MERGES)?.ok_or_else(|| format!("no {}", key::MERGES))?;
        let known: HashSet<&str> = tokens.texts.iter().copied().collect();
        let pair = |entry: &&str| {
            let start = entry.chars().next().map_or(0, char::len_utf8);
            let (left, right) = entry.get(start..)?.find(' ').map(|at| entry.split_at(start + at))?;
            let right = &right[1..];
            let merged = format!("{left}{right}");
            [left, right, &merged].iter().all(|text| known.contains(text)).then(|| json!([left, right]))
        };
        list.iter().map(|entry| pair(entry).ok_or_else(|| format!("a merge {entry:?}"))).collect()
    }

    fn merges_of_scores(&self, tokens: &Tokens<'_>) -> Result<Vec<Value>, String> {
        let list = self.list(key::SCORES)?.ok_or_else(|| format!("no {}", key::SCORES))?;
        if list.len() != tokens.texts.len() {
            return Err(format!("{} tokens and {} scores", tokens.texts.len(), list.len()));
        }
        let mut scored = Vec::with_capacity(list.len());
        for ((text, token_type), value) in tokens.texts.iter().zip(&tokens.types).zip(list) {
            let &Stored::F32(score) = value else { return Err(format!("{} with {value:?}", key::SCORES)) };
            if matches!(token_type, TokenType::Normal | TokenType::Unused) {
                scored.push((*text, score));
            }
        }
        Ok(scores::to_merges(&scored)?.into_iter().map(|(left, right)| json!([left, right])).collect())
    }

    /// The tokens around a text. A file that does not say so leaves it to the kind of tokenizer.
    fn post_processor(&self, kind: Kind, rule: Option<&Rule>, tokens: &Tokens<'_>) -> Result<Value, String> {
        let usual = rule.is_none_or(|rule| rule.adds_bos);
        // llama.cpp adds it for Gemma 4 in any case.
        let begins = kind == Kind::Characters || self.flag(key::ADD_BOS)?.unwrap_or(usual);
        let ends = self.flag(key::ADD_EOS)?.unwrap_or(false);
        let begin =
            if begins { Some(self.begin(kind, tokens)?.ok_or_else(|| format!("no {}", key::BOS))?) } else { None };
        let end = if ends { Some(self.end(kind, tokens)?.ok_or_else(|| format!("no {}", key::EOS))?) } else { None };
        if begin.is_none() && end.is_none() {
            return Ok(Value::Null);
        }
        let text = |id: u32| tokens.texts[id as usize];
        let special = |id: u32| json!({"SpecialToken": {"id": text(id), "type_id": 0}});
        let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |middle: Vec<Value>| -> Vec<Value> {
            begin.map(special).into_iter().chain(middle).chain(end.map(special)).collect()
        };
        let entry = |id: u32| (text(id).to_owned(), json!({"id": text(id), "ids": [id], "tokens": [text(id)]}));
        let entries: Map<String, Value> = [begin, end].into_iter().flatten().map(entry).collect();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": around(vec![sequence("A")]),
            "pair": around(vec![sequence("A"), sequence("B")]),
            "special_tokens": entries,
        }))
    }

    /// The token that begins a text. Files of SentencePiece models need not name it.
    fn begin(&self, kind: Kind, tokens: &Tokens<'_>) -> Result<Option<u32>, String> {
        let usual = (kind == Kind::Scored && tokens.texts.len() > 1).then_some(1);
        Ok(self.id(key::BOS, tokens)?.or(usual))
    }

    /// The token that ends a text. Files of SentencePiece models need not name it.
    fn end(&self, kind: Kind, tokens: &Tokens<'_>) -> Result<Option<u32>, String> {
        let usual = (kind == Kind::Scored && tokens.texts.len() > 2).then_some(2);
        Ok(self.id(key::EOS, tokens)?.or(usual))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Stored::Text(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{key} that is no text")),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Stored::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(format!("{key} that is neither true nor false")),
        }
    }

    /// The id of a token.
    fn id(&self, key: &str, tokens: &Tokens<'_>) -> Result<Option<u32>, String> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let id = whole(value).and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < tokens.texts.len());
        id.map(Some).ok_or_else(|| format!("{key} that is the id of no token"))
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Stored]>, String> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Stored::List(list)) => Ok(Some(list)),
            Some(_) => Err(format!("{key} that is no list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let text = |value: &'a Stored| match value {
            Stored::Text(text) => Ok(text.as_str()),
            _ => Err(format!("{key} that is no list of texts")),
        };
        list.iter().map(text).collect::<Result<_, _>>().map(Some)
    }
}

impl Tokens<'_> {
    /// The tokens that are found in a text before anything else.
    fn added(&self) -> Vec<Value> {
        let entry = |(id, (text, token_type)): (usize, (&&str, &TokenType))| {
            let special = match token_type {
                TokenType::Control | TokenType::Unknown => true,
                // llama.cpp knows these tokens by their text.
                _ if specials::ends_text(text) => true,
                TokenType::UserDefined => false,
                TokenType::Normal | TokenType::Unused | TokenType::Byte => return None,
            };
            Some(json!({
                "id": id,
                "content": text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": special,
            }))
        };
        self.texts.iter().zip(&self.types).enumerate().filter_map(entry).collect()
    }

    /// Whether llama.cpp goes on behind a token that usually ends a text: "<|end|>" beside tokens for calls, and
    /// "</s>" in Gemma 4.
    fn is_spared(&self, id: u32) -> bool {
        let has = |texts: &[&str]| texts.iter().all(|text| self.texts.contains(text));
        match self.texts[id as usize] {
            "<|end|>" => has(&["<|return|>", "<|call|>"]) || has(&["<|calls|>", "<|flush|>"]),
            "</s>" => has(&["<|tool_response>"]),
            _ => false,
        }
    }
}

/// A number without a fraction, of any width.
fn whole(value: &Stored) -> Option<i64> {
    match *value {
        Stored::U8(number) => Some(number.into()),
        Stored::I8(number) => Some(number.into()),
        Stored::U16(number) => Some(number.into()),
        Stored::I16(number) => Some(number.into()),
        Stored::U32(number) => Some(number.into()),
        Stored::I32(number) => Some(number.into()),
        Stored::U64(number) => number.try_into().ok(),
        Stored::I64(number) => Some(number),
        _ => None,
    }
}

/// Marks spaces, where tokens are characters.
fn normalizer(kind: Kind, prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK});
    match (kind, prefix) {
        (Kind::Bytes, _) => Value::Null,
        (_, false) => replace,
        (_, true) => {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE_MARK}, replace]})
        }
    }
}

/// Turns tokens into text.
fn decoder(kind: Kind, prefix: bool) -> Value {
    if kind == Kind::Bytes {
        return json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    }
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}
