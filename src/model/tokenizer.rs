//! Text to token ids, through the `tokenizer.json` that comes with a checkpoint.

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
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| refuse(e.to_string()))?;
        inner.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        inner.with_padding(None);
        Ok(Self { subject: subject.to_owned(), inner })
    }

    /// Token ids of `text`, encoded in one piece.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // `encode_fast` leaves out character offsets, which nobody here reads; the ids are the same.
        let encoding = self.inner.encode_fast(text, true).map_err(|e| {
            Error::input(
                &self.subject,
                format!("a text it cannot encode ({e})"),
                "a tokenizer that covers the text",
                "use the tokenizer.json the model was trained with",
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }
}
