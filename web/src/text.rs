//! The texts of a run: what is calibrated on, and what is measured on.

use aquatint::calibration::TextFile;
use aquatint::{Calibration, Checkpoint, Error, Result, Sampling};

/// At most this many windows are measured on.
const MEASURED_WINDOWS: usize = 32;

/// Bytes that are tokenized at once, about.
const LONGEST_PIECE: usize = 512 << 10;

/// A text as the page sends it. With `evaluation`, that is measured on; else the last tenth of `text`.
#[derive(Debug, Default, serde::Deserialize)]
pub struct TextArgs {
    name: String,
    text: String,
    evaluation: Option<String>,
}

/// Both texts as tokens.
pub struct Texts {
    /// To calibrate on.
    pub calibration: Calibration,
    /// To measure on.
    pub evaluation: Calibration,
}

impl TextArgs {
    /// Tokenizes both parts. A line that straddles the border belongs to the calibration.
    pub async fn tokenize(self, model: &Checkpoint) -> Result<Texts> {
        let Self { name, text, evaluation } = self;
        let border = match &evaluation {
            Some(_) => text.len(),
            None => held_out_from(&text),
        };
        let (fitting, rest) = text.split_at(border);
        let measured = evaluation.as_deref().unwrap_or(rest);
        let tokenizer = model.tokenizer().await?;
        let tokens = |name: &str, text: &str| {
            let file = |text: &str| TextFile { name: name.to_owned(), bytes: text.as_bytes().to_vec().into() };
            let files: Vec<TextFile> = pieces(text).into_iter().map(file).collect();
            Calibration::from_texts(&tokenizer, &files, model.config().vocab_size)
        };
        let evaluation = tokens(&format!("the held-out part of {name}"), measured)?;
        Ok(Texts { calibration: tokens(&name, fitting)?, evaluation })
    }
}

/// Cuts a long text at line breaks: tokenizing takes a hundred times the memory of the text, and wasm memory never shrinks.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while let Some(start) = text.as_bytes().get(LONGEST_PIECE..) {
        let Some(offset) = start.iter().position(|&byte| byte == b'\n') else { break };
        let (piece, rest) = text.split_at(LONGEST_PIECE + offset + 1);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    // What is left may be a line break and nothing else, which would count as a file without text.
    pieces.retain(|piece| !piece.trim().is_empty());
    pieces
}

/// Where the last tenth begins: after the first line break in it.
fn held_out_from(text: &str) -> usize {
    let tenth = text.len() - text.len() / 10;
    text.as_bytes()[tenth..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |offset| tenth + offset + 1)
}

impl Texts {
    /// The windows to measure on: the first of `seq_len` tokens.
    pub fn measured(&self, seq_len: usize) -> Result<Vec<Vec<u32>>> {
        let count = self.evaluation.sequential_windows(seq_len).min(MEASURED_WINDOWS);
        if count == 0 {
            return Err(Error::input(
                "the held-out part of the text",
                format!("{} tokens", self.evaluation.tokens().len()),
                format!("at least one window of {seq_len}"),
                "give more text, with line breaks, or choose a shorter length",
            ));
        }
        self.evaluation.windows(count, seq_len, Sampling::Sequential, 0)
    }
}
