//! The texts of a run: one for calibration, and one for the evaluation.

use aquatint::calibration::TextFile;
use aquatint::{Calibration, Checkpoint, Error, Result, Sampling};

/// The most windows that an evaluation uses.
const MEASURED_WINDOWS: usize = 32;

/// About how many bytes are tokenized at once.
const LONGEST_PIECE: usize = 512 << 10;

/// A text as the page sends it. The evaluation uses `evaluation` if it is given, else the last tenth of `text`.
#[derive(Debug, Default, serde::Deserialize)]
pub struct TextArgs {
    name: String,
    text: String,
    evaluation: Option<String>,
}

/// Both texts, tokenized.
pub struct Texts {
    /// The calibration text.
    pub calibration: Calibration,
    /// The evaluation text.
    pub evaluation: Calibration,
}

impl TextArgs {
    /// Tokenizes both texts. A line that crosses the border of the last tenth belongs to the calibration text.
    ///
    /// Errors: a text without tokens, or an unusable tokenizer.
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

/// Cuts a long text at line breaks. Tokenizing a text takes a hundred times its memory, and wasm memory never shrinks.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while let Some(start) = text.as_bytes().get(LONGEST_PIECE..) {
        let Some(offset) = start.iter().position(|&byte| byte == b'\n') else { break };
        let (piece, rest) = text.split_at(LONGEST_PIECE + offset + 1);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    // The last piece may be a line break only, which the library would reject as a file without text.
    pieces.retain(|piece| !piece.trim().is_empty());
    pieces
}

/// Returns the byte at which the held-out text begins: after the first line break in the last tenth.
fn held_out_from(text: &str) -> usize {
    let tenth = text.len() - text.len() / 10;
    text.as_bytes()[tenth..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |offset| tenth + offset + 1)
}

impl Texts {
    /// Returns the evaluation windows: the first ones of the text, of `seq_len` tokens each.
    ///
    /// Errors: `Error::Input` if the text is shorter than one window.
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
