//! The tokens of a `tokenizer.json`.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::SPACE_MARK;

/// A token that is found in a text before anything else.
pub(super) struct Added {
    /// Whether it has a meaning and no text.
    pub special: bool,
    /// Whether it swallows the spaces around it, or stands only between words.
    pub bounded: bool,
    /// Whether merges make it like an ordinary token. It is in the vocabulary of the model, and its text has marks in
    /// the place of spaces, so that it is not found in a text whose spaces are not marked yet.
    pub merged: bool,
}

/// The tokens of a `tokenizer.json`, without those beyond the rows of the embedding.
pub(super) struct Vocabulary<'a> {
    /// The text of every id; `None` for a row of the embedding without a token.
    pub texts: Vec<Option<&'a str>>,
    /// The id of every text.
    pub ids: HashMap<&'a str, u32>,
    pub added: BTreeMap<u32, Added>,
    /// Texts of added tokens beyond the embedding.
    pub beyond: Vec<&'a str>,
}

impl<'a> Vocabulary<'a> {
    /// The tokens of `tokenizer`, for an embedding of `rows` rows.
    ///
    /// Errors, as what was found: a malformed list of tokens; two texts of one token, or two tokens of one text; a
    /// token beyond the embedding that can occur in ordinary text.
    pub fn of(tokenizer: &'a Value, rows: usize) -> Result<Self, String> {
        let model = tokenizer["model"]["vocab"].as_object().ok_or("no vocabulary")?;
        let mut vocabulary = Self {
            texts: vec![None; rows],
            ids: HashMap::with_capacity(rows),
            added: BTreeMap::new(),
            beyond: Vec::new(),
        };
        for (text, id) in model {
            let id = id.as_u64().ok_or_else(|| format!("a token {text:?} without an id"))?;
            if id >= rows as u64 {
                vocabulary.beyond.push(text);
            } else {
                vocabulary.insert(text, id as u32)?;
            }
        }
        let in_model = vocabulary.beyond.len();
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            vocabulary.add(token, rows)?;
        }
        // A token of the model beyond the embedding must be an added one, too.
        let (of_model, added) = vocabulary.beyond.split_at(in_model);
        match of_model.iter().find(|text| !added.contains(text)) {
            Some(text) => Err(format!("a token {text:?} beyond the {rows} rows of the embedding")),
            None => {
                vocabulary.beyond.drain(..in_model);
                Ok(vocabulary)
            }
        }
    }

    /// Adds an entry of the list of added tokens.
    fn add(&mut self, token: &'a Value, rows: usize) -> Result<(), String> {
        let (text, id) = (token["content"].as_str(), token["id"].as_u64());
        let (Some(text), Some(id)) = (text, id) else { return Err(format!("an added token {token}")) };
        if id >= rows as u64 {
            self.beyond.push(text);
            return Ok(());
        }
        let id = id as u32;
        let known = self.ids.get(text) == Some(&id);
        if !known {
            self.insert(text, id)?;
        }
        let bounded = ["lstrip", "rstrip", "single_word"].iter().any(|key| token[key] == true);
        let special = token["special"] == true;
        let merged = known && !special && token["normalized"] == false && text.contains(SPACE_MARK);
        self.added.insert(id, Added { special, bounded, merged });
        Ok(())
    }

    /// Whether `text` is a token that only merges make.
    pub fn is_ordinary(&self, text: &str) -> bool {
        self.ids.get(text).is_some_and(|id| self.added.get(id).is_none_or(|added| added.merged))
    }

    /// Adds a token with a new text and a new id.
    fn insert(&mut self, text: &'a str, id: u32) -> Result<(), String> {
        if let Some(other) = self.texts[id as usize].replace(text) {
            return Err(format!("two texts {other:?} and {text:?} of token {id}"));
        }
        match self.ids.insert(text, id) {
            Some(other) => Err(format!("two tokens {other} and {id} with the text {text:?}")),
            None => Ok(()),
        }
    }
}
