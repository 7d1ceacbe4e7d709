//! Turns texts into windows of tokens, for calibration and for evaluation.
//!
//! Random windows depend only on a seed. This module reads no files: the front ends hand over the bytes.

use std::borrow::Cow;

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Setting, phrase};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A text file: name and content. If the name ends in `.jsonl`, each line is a JSON object with a `text` field.
#[derive(Debug, Clone)]
pub struct TextFile {
    /// The name of the file in messages.
    pub name: String,
    /// Content of the file, UTF-8.
    pub bytes: Cow<'static, [u8]>,
}

/// How windows are chosen from the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// The first windows of the text, one after the other, without overlap.
    Sequential,
    /// Windows at distinct random positions, drawn uniformly with ChaCha8 from a seed. They may overlap.
    Random,
}

/// The tokens of all calibration or evaluation texts, concatenated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    names: String,
    tokens: Vec<u32>,
}

impl Calibration {
    /// Encodes `files` in the given order. Each text file, and each line of a JSONL file, is encoded as one document.
    ///
    /// Errors: `Error::Input` if a file is empty, not UTF-8 or malformed (naming the line), or if a token id is not
    /// below `vocab_size`, the vocabulary size of the model.
    pub fn from_texts(tokenizer: &Tokenizer, files: &[TextFile], vocab_size: usize) -> Result<Self> {
        let mut tokens = Vec::new();
        for file in files {
            let before = tokens.len();
            for document in documents(file)? {
                tokens.extend(tokenizer.encode(&document)?);
            }
            if tokens.len() == before {
                return Err(Error::input(&file.name, "no text", "text to make tokens of", "choose another file"));
            }
            check_vocabulary(file, &tokens[before..], vocab_size)?;
        }
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        Ok(Self { names: names.join(", "), tokens })
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of windows of `seq_len` tokens that [`Sampling::Sequential`] can give.
    pub fn sequential_windows(&self, seq_len: usize) -> usize {
        self.tokens.len().checked_div(seq_len).unwrap_or(0)
    }

    /// Takes `samples` windows of `seq_len` tokens each. Only [`Sampling::Random`] uses `seed`. The same seed gives the
    /// same windows in the same order on every machine.
    ///
    /// Errors: `Error::Input` if the text is too short for that many windows, or if a number is 0.
    pub fn windows(&self, samples: usize, seq_len: usize, sampling: Sampling, seed: u64) -> Result<Vec<Vec<u32>>> {
        for (setting, value) in [(Setting::Samples, samples), (Setting::SeqLen, seq_len)] {
            if value == 0 {
                return Err(Error::input(setting, "0", "at least 1", "choose a larger number"));
            }
        }
        let needed = match sampling {
            Sampling::Sequential => samples.saturating_mul(seq_len),
            Sampling::Random => (samples - 1).saturating_add(seq_len),
        };
        if self.tokens.len() < needed {
            return Err(self.too_short(samples, seq_len, needed));
        }
        let window = |start: usize| self.tokens[start..start + seq_len].to_vec();
        Ok(match sampling {
            Sampling::Sequential => (0..samples).map(|i| window(i * seq_len)).collect(),
            Sampling::Random => {
                let starts = self.tokens.len() - seq_len + 1;
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                index::sample(&mut rng, starts, samples).into_iter().map(window).collect()
            }
        })
    }

    /// Takes `samples` windows, the last `held_out` of which share no token with the others.
    ///
    /// Sequential windows never overlap. Random windows may overlap, so the held-out ones come from the end of the
    /// text. The share of the text that is set aside for them is about `held_out` / `samples`. Errors: as
    /// [`Calibration::windows`], for each part of the text.
    pub fn draw(
        &self,
        samples: usize,
        held_out: usize,
        seq_len: usize,
        sampling: Sampling,
        seed: u64,
    ) -> Result<Vec<Vec<u32>>> {
        if sampling == Sampling::Sequential || held_out == 0 {
            return self.windows(samples, seq_len, sampling, seed);
        }
        let len = self.tokens.len();
        let reserved = (len * held_out / samples).max(seq_len + held_out - 1).min(len);
        let part = |tokens: &[u32]| Self { names: self.names.clone(), tokens: tokens.to_vec() };
        let (fitting, rest) = self.tokens.split_at(len - reserved);
        let mut windows = part(fitting).windows(samples - held_out, seq_len, sampling, seed)?;
        windows.extend(part(rest).windows(held_out, seq_len, sampling, seed.wrapping_add(1))?);
        Ok(windows)
    }

    /// The error for a text with fewer than `needed` tokens.
    fn too_short(&self, samples: usize, seq_len: usize, needed: usize) -> Error {
        let subject = if self.names.is_empty() { "calibration text" } else { &self.names };
        Error::input(
            subject,
            format!("{} tokens", self.tokens.len()),
            format!("at least {needed} for {samples} samples of {seq_len}"),
            phrase!["give more text, or smaller ", Setting::Samples, " or ", Setting::SeqLen],
        )
    }
}

/// The documents of a file: the whole text, or the `text` field of each line. Documents of white space alone are left
/// out.
fn documents(file: &TextFile) -> Result<Vec<Cow<'_, str>>> {
    let text = std::str::from_utf8(&file.bytes).map_err(|e| {
        let found = format!("bytes that are not UTF-8 (at {})", e.valid_up_to());
        Error::input(&file.name, found, "UTF-8 text", "convert the file to UTF-8")
    })?;
    if !file.name.to_ascii_lowercase().ends_with(".jsonl") {
        return Ok(if text.trim().is_empty() { Vec::new() } else { vec![Cow::Borrowed(text)] });
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(index, line)| parse_line(&file.name, index + 1, line));
    let parsed: Vec<Cow<'_, str>> = parsed.collect::<Result<_>>()?;
    Ok(parsed.into_iter().filter(|document| !document.trim().is_empty()).collect())
}

fn parse_line(file: &str, number: usize, line: &str) -> Result<Cow<'static, str>> {
    #[derive(Deserialize)]
    struct Line {
        text: String,
    }

    serde_json::from_str(line).map(|Line { text }| Cow::Owned(text)).map_err(|e| {
        Error::input(
            format!("{file}, line {number}"),
            format!("something else ({e})"),
            "a JSON object with a \"text\" string",
            "correct the line, or name the file .txt if it is plain text",
        )
    })
}

/// Checks that all token ids are below `vocab_size`.
fn check_vocabulary(file: &TextFile, tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(Error::input(
            &file.name,
            format!("token {id} from tokenizer.json"),
            format!("ids below the vocabulary of {vocab_size} in config.json"),
            "use the tokenizer.json that belongs to the model",
        )),
    }
}
