//! Converts text to token ids and back, with the `tokenizer.json` of a checkpoint.
//!
//! The work is done by the Hugging Face tokenizers library. This module guards against files that make the library
//! panic or fill the memory (`rules`).

mod rules;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, Result};

/// The tokenizer of one model.
///
/// Special tokens, such as a leading BOS, are added exactly where `tokenizer.json` says so. Some files ask for
/// truncation or padding; both are switched off, so a text is always encoded whole.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    subject: String,
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`. `subject` names the file in error messages. Errors: `Error::Input` if it
    /// cannot be used.
    pub fn from_bytes(subject: &str, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| {
            Error::input(
                subject,
                format!("no usable tokenizer ({reason})"),
                "a tokenizer.json as Hugging Face tokenizers writes it",
                "download the checkpoint's tokenizer.json again",
            )
        };
        // The library panics on some files that are not JSON.
        serde_json::from_slice::<serde_json::Value>(bytes).map_err(|e| refuse(e.to_string()))?;
        rules::check(bytes).map_err(refuse)?;
        let mut inner = catch_panic(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(refuse)?;
        inner.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        inner.with_padding(None);
        Ok(Self { subject: subject.to_owned(), inner })
    }

    /// Encodes `text` in one piece. Errors: `Error::Input` if the tokenizer cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // `encode_fast` leaves out character offsets, which are not used here. The ids are the same.
        let encoding = catch_panic(|| self.inner.encode_fast(text, true)).map_err(|e| {
            Error::input(
                &self.subject,
                format!("a text it cannot encode ({e})"),
                "a tokenizer that covers the text",
                "use the tokenizer.json the model was trained with",
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes `ids`, leaving out special tokens. Bytes that do not form a whole character become U+FFFD. Errors:
    /// `Error::Input` if the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        catch_panic(|| self.inner.decode(ids, true)).map_err(|e| {
            Error::input(
                &self.subject,
                format!("tokens it cannot decode ({e})"),
                "a decoder that fits its vocabulary",
                "use the tokenizer.json the model was trained with",
            )
        })
    }
}

/// Runs a call into the tokenizers library and turns both its errors and its panics into a reason.
///
/// The library panics on some files that are valid JSON, for example where the prefix of subwords is longer than the
/// subword. A panic leaves nothing of the library half changed except its cache, which it then stops using. In a
/// browser a panic cannot be caught.
fn catch_panic<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library gave up on it".to_owned()),
    }
}

/// Decodes a growing sequence of tokens into pieces of text. The concatenated pieces are the whole text.
///
/// The text of a token depends on its neighbours: several tokens may form one character, and some decoders drop a space
/// at the start of a text. Each piece is therefore the text that is added by the latest tokens. It is held back until
/// its last character is complete.
#[derive(Debug)]
pub struct TextStream {
    ids: Vec<u32>,
    /// Decoding starts at this token. It includes at least the tokens of the last piece, so that the next piece has a
    /// neighbour.
    start: usize,
    /// The text of all tokens before this index was returned already.
    returned: usize,
}

impl TextStream {
    /// Starts a stream that returns the text after that of `ids`.
    pub fn after(ids: Vec<u32>) -> Self {
        Self { start: 0, returned: ids.len(), ids }
    }

    /// All tokens, including those given to [`TextStream::after`].
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Appends a token. Returns the text that it completes, which may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let piece = self.pending_text(tokenizer)?;
        if piece.is_empty() || piece.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        (self.start, self.returned) = (self.returned, self.ids.len());
        Ok(piece)
    }

    /// Returns the text that was held back, at the end of the sequence.
    pub fn rest(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let piece = self.pending_text(tokenizer)?;
        (self.start, self.returned) = (self.returned, self.ids.len());
        Ok(piece)
    }

    /// The text of the tokens that were not returned yet.
    fn pending_text(&self, tokenizer: &Tokenizer) -> Result<String> {
        let before = tokenizer.decode(&self.ids[self.start..self.returned])?;
        let text = tokenizer.decode(&self.ids[self.start..])?;
        Ok(text.get(before.len()..).unwrap_or_default().to_owned())
    }
}
