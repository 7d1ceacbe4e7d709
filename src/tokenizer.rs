//! Text to token ids and back, through the `tokenizer.json` that comes with a checkpoint.

mod rules;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, Result};

/// The tokenizer of one model.
///
/// Special tokens (such as a leading BOS) are added exactly where `tokenizer.json` says and nowhere else. Truncation and
/// padding, which some files ask for, are switched off: a text is always encoded whole.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    subject: String,
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`; `subject` names the file in error messages.
    pub fn from_bytes(subject: &str, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| {
            Error::input(
                subject,
                format!("no usable tokenizer ({reason})"),
                "a tokenizer.json as Hugging Face tokenizers writes it",
                "download the checkpoint's tokenizer.json again",
            )
        };
        // The library panics over some files that are not JSON.
        serde_json::from_slice::<serde_json::Value>(bytes).map_err(|e| refuse(e.to_string()))?;
        rules::check(bytes).map_err(refuse)?;
        let mut inner = caught(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(refuse)?;
        inner.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        inner.with_padding(None);
        Ok(Self { subject: subject.to_owned(), inner })
    }

    /// Token ids of `text`, encoded in one piece.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // `encode_fast` leaves out character offsets, which nobody here reads; the ids are the same.
        let encoding = caught(|| self.inner.encode_fast(text, true)).map_err(|e| {
            Error::input(
                &self.subject,
                format!("a text it cannot encode ({e})"),
                "a tokenizer that covers the text",
                "use the tokenizer.json the model was trained with",
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out. Bytes that are no whole character become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        caught(|| self.inner.decode(ids, true)).map_err(|e| {
            Error::input(
                &self.subject,
                format!("tokens it cannot decode ({e})"),
                "a decoder that fits its vocabulary",
                "use the tokenizer.json the model was trained with",
            )
        })
    }
}

/// What the library gives, or why it gives nothing.
///
/// It panics over some files that are JSON, for example where a prefix of subwords is longer than the subword. Nothing of it is
/// left half changed then but its cache, which it stops using. In a browser a panic cannot be caught.
fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library gave up on it".to_owned()),
    }
}

/// The text of a growing sequence of tokens, in pieces that add up to it.
///
/// The text of a token depends on its neighbours: a character may be spread over several, and at the start of a text some
/// decoders drop a space. So a piece is what the text gains, and it waits until its last character is whole.
#[derive(Debug)]
pub struct TextStream {
    ids: Vec<u32>,
    /// The tokens from here on are decoded: at least those of the last piece, so that the next one has a neighbour.
    start: usize,
    /// The text of the tokens before this one was given out.
    told: usize,
}

impl TextStream {
    /// A stream of the text that follows that of `ids`.
    pub fn after(ids: Vec<u32>) -> Self {
        Self { start: 0, told: ids.len(), ids }
    }

    /// All tokens, those that it started after among them.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Appends a token; the text that this completes, possibly none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let piece = self.untold(tokenizer)?;
        if piece.is_empty() || piece.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        (self.start, self.told) = (self.told, self.ids.len());
        Ok(piece)
    }

    /// What was held back, at the end of the text.
    pub fn rest(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let piece = self.untold(tokenizer)?;
        (self.start, self.told) = (self.told, self.ids.len());
        Ok(piece)
    }

    fn untold(&self, tokenizer: &Tokenizer) -> Result<String> {
        let before = tokenizer.decode(&self.ids[self.start..self.told])?;
        let text = tokenizer.decode(&self.ids[self.start..])?;
        Ok(text.get(before.len()..).unwrap_or_default().to_owned())
    }
}
