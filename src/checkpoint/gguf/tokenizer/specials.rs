//! The tokens of a model that have a meaning: which token begins a text, which end it, and what is put around a text.

use serde_json::Value;

use super::files::TokenizerFiles;
use super::key;
use super::vocabulary::Vocabulary;
use crate::checkpoint::gguf::metadata::{Metadata, Value as Stored};

/// Texts of tokens at which llama.cpp ends a generation, whatever the file says.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Whether llama.cpp ends a generation at a token with this text.
pub(super) fn ends_text(text: &str) -> bool {
    ENDS.contains(&text)
}

/// The names of tokens in tokenizer_config.json, with their keys in a GGUF file. The tokens that begin and end a text
/// are found by more than their name.
const NAMES: [(&str, &str); 4] = [
    ("unk_token", key::UNKNOWN),
    ("sep_token", key::SEPARATOR),
    ("pad_token", key::PADDING),
    ("mask_token", key::MASK),
];

/// Writes the pairs for tokens with a meaning. Returns notes on what a GGUF file cannot say.
///
/// Errors, as what was found: tokens that the vocabulary lacks; a `post_processor` of unknown kind.
pub(super) fn write(
    files: &TokenizerFiles,
    vocabulary: &Vocabulary<'_>,
    metadata: &mut Metadata,
) -> Result<Vec<String>, String> {
    let mut notes = Vec::new();
    let named = |name: &str| named(files, vocabulary, name);
    let (before, after) = around(&files.tokenizer["post_processor"])?;
    let before = single(&before, "before", vocabulary, &mut notes)?;
    let after = single(&after, "behind", vocabulary, &mut notes)?;
    let in_rows = |id: &u32| (*id as usize) < files.vocab_size;
    let begin = before.or_else(|| named("bos_token")).or(files.begin.filter(in_rows));
    if let Some(begin) = begin {
        metadata.set(key::BOS, Stored::U32(begin));
    }
    let mut ends: Vec<u32> = Vec::new();
    let others = files.ends.iter().copied().filter(in_rows);
    for end in after.into_iter().chain(named("eos_token")).chain(others) {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    notes.extend(write_ends(&ends, vocabulary, metadata));
    for (name, key) in NAMES {
        if let Some(token) = named(name) {
            metadata.set(key, Stored::U32(token));
        }
    }
    let added = [("add_bos_token", key::ADD_BOS, before, key::BOS), ("add_eos_token", key::ADD_EOS, after, key::EOS)];
    for (name, key, token, token_key) in added {
        let adds = files.settings.get(name).and_then(Value::as_bool).unwrap_or(token.is_some());
        if adds != token.is_some() {
            notes.push(format!("the GGUF file follows {name} in tokenizer_config.json, and not tokenizer.json"));
        }
        if adds && metadata.get(token_key).is_none() {
            return Err(format!("\"{name}\": true in tokenizer_config.json, and no such token"));
        }
        metadata.set(key, Stored::Bool(adds));
    }
    Ok(notes)
}

/// Writes the tokens that end a text. A GGUF file has room for three, beside those that llama.cpp knows by their text.
/// Returns a note if there are more.
fn write_ends(ends: &[u32], vocabulary: &Vocabulary<'_>, metadata: &mut Metadata) -> Option<String> {
    let (&first, others) = ends.split_first()?;
    metadata.set(key::EOS, Stored::U32(first));
    let text = |id: u32| vocabulary.texts[id as usize].unwrap_or_default();
    let (known, unknown): (Vec<u32>, Vec<u32>) = others.iter().partition(|&&id| ends_text(text(id)));
    let (of_message, of_turn): (Vec<u32>, Vec<u32>) = known.iter().partition(|&&id| text(id) == "<|eom_id|>");
    let mut unknown = unknown.into_iter();
    let eot = unknown.next().or(of_turn.first().copied());
    let eom = of_message.first().copied().or_else(|| unknown.next());
    for (key, id) in [(key::EOT, eot), (key::EOM, eom)] {
        if let Some(id) = id {
            metadata.set(key, Stored::U32(id));
        }
    }
    let rest: Vec<&str> = unknown.map(text).collect();
    let note = || format!("a GGUF file has no place for more tokens that end a text: {}", rest.join(", "));
    if rest.is_empty() { None } else { Some(note()) }
}

/// The id of the token that tokenizer_config.json has under `name`.
fn named(files: &TokenizerFiles, vocabulary: &Vocabulary<'_>, name: &str) -> Option<u32> {
    let value = files.settings.get(name)?;
    let text = value.as_str().or_else(|| value["content"].as_str())?;
    vocabulary.ids.get(text).copied()
}

/// The id of the only token in `texts`. A note if there are several: llama.cpp puts at most one token before and one
/// behind a text.
fn single(
    texts: &[String],
    place: &str,
    vocabulary: &Vocabulary<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<u32>, String> {
    match texts {
        [] => Ok(None),
        [text] => {
            let id = vocabulary.ids.get(text.as_str()).copied();
            id.map(Some).ok_or_else(|| format!("no token {text:?}, which is added to every text"))
        }
        several => {
            let tokens = several.join(" and ");
            notes.push(format!("llama.cpp does not put {tokens} {place} a text, as tokenizer.json does"));
            Ok(None)
        }
    }
}

/// The tokens that a `post_processor` puts before and behind a text. Errors: an unknown kind of it.
fn around(processor: &Value) -> Result<(Vec<String>, Vec<String>), String> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let unknown = || format!("a post_processor of type {}", processor["type"]);
    let texts = |pieces: &[Value]| -> Option<Vec<String>> {
        pieces.iter().map(|piece| piece["SpecialToken"]["id"].as_str().map(str::to_owned)).collect()
    };
    match processor["type"].as_str() {
        None if processor.is_null() => {}
        Some("ByteLevel") => {}
        Some("Sequence") => {
            for part in processor["processors"].as_array().into_iter().flatten() {
                let (inner_before, inner_after) = around(part)?;
                before.splice(0..0, inner_before);
                after.extend(inner_after);
            }
        }
        Some("TemplateProcessing") => {
            let pieces = processor["single"].as_array().ok_or_else(unknown)?;
            let text = pieces.iter().position(|piece| piece.get("Sequence").is_some()).ok_or_else(unknown)?;
            before = texts(&pieces[..text]).ok_or_else(unknown)?;
            after = texts(&pieces[text + 1..]).ok_or_else(unknown)?;
        }
        Some("BertProcessing" | "RobertaProcessing") => {
            let token = |name: &str| processor[name][0].as_str().map(str::to_owned).ok_or_else(unknown);
            (before, after) = (vec![token("cls")?], vec![token("sep")?]);
        }
        _ => return Err(unknown()),
    }
    Ok((before, after))
}

/// Writes the chat template. A list of templates has one called "default".
///
/// Errors, as what was found: a template that is neither a text nor such a list.
pub(super) fn write_templates(files: &TokenizerFiles, metadata: &mut Metadata) -> Result<(), String> {
    let text = |template: &str| Stored::Text(template.to_owned());
    match (&files.chat_template, files.settings.get("chat_template")) {
        (Some(template), _) => metadata.set(key::TEMPLATE, text(template)),
        (None, None | Some(Value::Null)) => {}
        (None, Some(Value::String(template))) => metadata.set(key::TEMPLATE, text(template)),
        (None, Some(Value::Array(templates))) => {
            let mut names = Vec::new();
            for entry in templates {
                let (name, template) = (entry["name"].as_str(), entry["template"].as_str());
                let (Some(name), Some(template)) = (name, template) else {
                    return Err("a malformed chat_template".to_owned());
                };
                if name == "default" {
                    metadata.set(key::TEMPLATE, text(template));
                } else {
                    names.push(text(name));
                    metadata.set(format!("{}.{name}", key::TEMPLATE), text(template));
                }
            }
            if !names.is_empty() {
                metadata.set(key::TEMPLATES, Stored::List(names));
            }
        }
        _ => return Err("a malformed chat_template".to_owned()),
    }
    Ok(())
}
