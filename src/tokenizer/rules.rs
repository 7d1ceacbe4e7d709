//! Checks the rules of a `tokenizer.json` before the library reads them.
//!
//! Two kinds of file are refused. Some rules would make a text grow without bounds: a few replacements, each ten times
//! as long as what it replaces, fit into a kilobyte and fill any memory. Other rules make the library panic, which
//! cannot be caught in a browser.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Limit of the growth of a text, as a factor over all rules together. The rules of tokenizers in use stay below a
/// thousand.
const MAX_GROWTH: u64 = 1 << 13;

/// The rules that change a text or its tokens, as JSON. A part that occurs twice in the file is an error.
#[derive(Deserialize)]
struct Rules {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

/// Checks the rules in the bytes of a `tokenizer.json`.
///
/// Errors, as a phrase: a text could grow too much; a rule cuts words into pieces of no characters; a table of
/// replacements is malformed; the bytes are not JSON of the expected kind.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let rules: Rules = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let parts = [rules.normalizer, rules.pre_tokenizer, rules.post_processor, rules.decoder];
    let mut growth = 1u64;
    for part in parts.iter().flatten() {
        growth = growth.saturating_mul(growth_of(part)?);
    }
    if growth > MAX_GROWTH { Err(format!("rules that can make a text {growth} times as long")) } else { Ok(()) }
}

/// Upper bound of the factor by which a rule and the rules inside it lengthen a text.
fn growth_of(rule: &Value) -> Result<u64, String> {
    let (own, inner): (u64, Vec<&Value>) = match rule {
        Value::Object(object) => (own_growth(object)?, object.values().collect()),
        Value::Array(list) => (1, list.iter().collect()),
        _ => (1, Vec::new()),
    };
    inner.into_iter().try_fold(own, |growth, rule| Ok(growth.saturating_mul(growth_of(rule)?)))
}

/// The factor of a rule itself, without the rules inside it.
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
    // Text that replaces a character, or that is put before a text, which can be a single character.
    let inserted = ["content", "prepend"].map(|key| {
        let text = rule.get(key).and_then(Value::as_str);
        1 + text.map_or(0, str::len) as u64
    });
    let charsmap = match rule.get("precompiled_charsmap").and_then(Value::as_str) {
        Some(base64) => 1 + longest_replacement(base64)?,
        None => 1,
    };
    // A template can repeat the text and add special tokens, each of which can stand for several ids.
    let pieces = rule.get("single").and_then(Value::as_array).map_or(1, |pieces| pieces.len().max(1)) as u64;
    let special = rule.get("special_tokens").and_then(Value::as_object);
    let ids = |token: &Value| token.get("ids").and_then(Value::as_array).map_or(0, Vec::len);
    let ids = 1 + special.and_then(|tokens| tokens.values().map(ids).max()).unwrap_or(0) as u64;
    let factors = inserted.into_iter().chain([charsmap, pieces, ids]);
    Ok(factors.fold(by_kind, u64::saturating_mul))
}

/// Length in bytes of the longest replacement in a SentencePiece table, given in base64. The table consists of the
/// length of a trie in bytes, the trie, and texts that end in zero bytes.
///
/// Errors: the bytes are no such table. The check is needed because the library allocates memory for the trie before it
/// looks at the length of the table.
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
        // The trie is announced with 2 GiB; the length is missing; the text is not UTF-8; the table is not base64.
        for table in ["////fwAA", "AAA=", "AAAAAP8=", "AAAAAGFiAGM?"] {
            assert!(check(rules(table).as_bytes()).is_err(), "{table}");
        }
    }
}
