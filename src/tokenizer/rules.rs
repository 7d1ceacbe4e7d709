//! Whether the rules of a `tokenizer.json` keep a text within bounds, and the library from panics that a browser cannot catch. A
//! sequence of replacements, each ten times as long as what it replaces, fits into a kilobyte and fills every memory.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

/// How many times longer all rules together may make a text. Those of tokenizers in use stay below a thousand.
const MOST: u64 = 1 << 13;

/// The rules that change a text or its tokens, as they stand. A part that stands there twice is an error.
#[derive(Deserialize)]
struct Rules {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

/// Errors, as a phrase: a text could grow too much, pieces of no characters, or a table that is none.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let rules: Rules = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let parts = [rules.normalizer, rules.pre_tokenizer, rules.post_processor, rules.decoder];
    let mut growth = 1u64;
    for part in parts.iter().flatten() {
        growth = growth.saturating_mul(growth_of(part)?);
    }
    if growth > MOST { Err(format!("rules that can make a text {growth} times as long")) } else { Ok(()) }
}

/// At most how many times longer a rule and those inside it make a text.
fn growth_of(rule: &Value) -> Result<u64, String> {
    let (own, inner): (u64, Vec<&Value>) = match rule {
        Value::Object(object) => (own_growth(object)?, object.values().collect()),
        Value::Array(list) => (1, list.iter().collect()),
        _ => (1, Vec::new()),
    };
    inner.into_iter().try_fold(own, |growth, rule| Ok(growth.saturating_mul(growth_of(rule)?)))
}

fn own_growth(rule: &Map<String, Value>) -> Result<u64, String> {
    if rule.get("length").and_then(Value::as_u64) == Some(0) {
        return Err("a rule that cuts words into pieces of no characters".to_owned());
    }
    let by_kind = match rule.get("type").and_then(Value::as_str) {
        Some("ByteLevel") => 2,
        Some("BertNormalizer" | "Lowercase" | "NFC" | "NFD") => 3,
        Some("NFKC" | "NFKD") => 11,
        _ => 1,
    };
    // What takes the place of a character, or goes before a text, which can be a character.
    let inserted = ["content", "prepend"].map(|key| {
        let text = rule.get(key).and_then(Value::as_str);
        1 + text.map_or(0, str::len) as u64
    });
    let charsmap = match rule.get("precompiled_charsmap").and_then(Value::as_str) {
        Some(base64) => 1 + longest_replacement(base64)?,
        None => 1,
    };
    // A template repeats the text, and special tokens that may each be many.
    let pieces = rule.get("single").and_then(Value::as_array).map_or(1, |pieces| pieces.len().max(1)) as u64;
    let special = rule.get("special_tokens").and_then(Value::as_object);
    let ids = |token: &Value| token.get("ids").and_then(Value::as_array).map_or(0, Vec::len);
    let ids = 1 + special.and_then(|tokens| tokens.values().map(ids).max()).unwrap_or(0) as u64;
    let factors = inserted.into_iter().chain([charsmap, pieces, ids]);
    Ok(factors.fold(by_kind, u64::saturating_mul))
}

/// Bytes of the longest replacement in a table of SentencePiece: the length of a trie, that many bytes, and texts that end in
/// zeros.
///
/// Errors: it is nothing of the kind. The library takes memory for the trie before it looks how long the table is.
fn longest_replacement(base64: &str) -> Result<u64, String> {
    let texts = |table: Vec<u8>| {
        let (length, rest) = table.split_first_chunk::<4>()?;
        let texts = std::str::from_utf8(rest.get(u32::from_le_bytes(*length) as usize..)?).ok()?;
        texts.split('\0').map(str::len).max()
    };
    let longest = STANDARD.decode(base64).ok().and_then(texts);
    longest.map(|longest| longest as u64).ok_or_else(|| "a precompiled_charsmap that is no such table".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_product_of_all_rules() {
        let rules =
            |normalizers: &str| format!(r#"{{"normalizer":{{"type":"Sequence","normalizers":[{normalizers}]}}}}"#);
        let replace = r#"{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaa"}"#;
        let check = |count: usize| check(rules(&vec![replace; count].join(",")).as_bytes());
        assert_eq!(check(3), Ok(()));
        assert_eq!(check(4), Err("rules that can make a text 10000 times as long".to_string()));
    }

    #[test]
    fn a_table_that_is_none_is_refused() {
        let rules = |table| format!(r#"{{"normalizer":{{"type":"Precompiled","precompiled_charsmap":"{table}"}}}}"#);
        assert_eq!(check(rules("AAAAAGFiAGM=").as_bytes()), Ok(()));
        // One that announces 2 GiB, one without a length, one whose text is no UTF-8, and no base64.
        for table in ["////fwAA", "AAA=", "AAAAAP8=", "AAAAAGFiAGM?"] {
            assert!(check(rules(table).as_bytes()).is_err(), "{table}");
        }
    }
}
