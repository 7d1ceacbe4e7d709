//! Continues a text with a model, token by token. This module draws the tokens, decides when to stop, and returns the
//! text in pieces.
//!
//! The forward pass and the cache of keys and values are in `engine::Decoder`.
//!
//! ```
//! use aquatint::device::{Device, Recorder};
//! use aquatint::{GenerateOptions, Generator, bundled};
//!
//! # fn main() -> aquatint::Result<()> {
//! pollster::block_on(async {
//!     let mut rec = Recorder::new(&Device::Cpu);
//!     let mut generator = Generator::load(&mut rec, &bundled::checkpoint().await?, None, 64).await?;
//!     generator.start(&mut rec, "The city of", GenerateOptions { tokens: 8, ..GenerateOptions::default() }).await?;
//!     let mut text = String::new();
//!     while let Some(piece) = generator.next(&mut rec).await? {
//!         text += &piece;
//!     }
//!     assert_eq!(generator.generated().len(), 8);
//!     assert!(text.starts_with(' '));
//!     Ok(())
//! })
//! # }
//! ```

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checkpoint::Checkpoint;
use crate::device::Recorder;
use crate::engine::Decoder;
use crate::error::{Phrase, Setting, phrase};
use crate::stored::Replacements;
use crate::tokenizer::TextStream;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Options of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// Greatest number of tokens to generate.
    pub tokens: usize,
    /// Temperature T. At 0, the most likely token is taken each time. Above 0, a token is drawn after dividing the
    /// logits by T.
    pub temperature: f64,
    /// Seed of the random draws. The same seed on the same device gives the same text.
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { tokens: 128, temperature: 0.0, seed: 0 }
    }
}

impl GenerateOptions {
    /// Checks the ranges of the options. Errors: `Error::Input` naming an option outside its range.
    pub fn validate(&self) -> Result<()> {
        if self.tokens == 0 {
            return Err(Error::input(Setting::Tokens, "0", "at least 1", "choose a larger number"));
        }
        if self.temperature >= 0.0 && self.temperature.is_finite() {
            return Ok(());
        }
        let expected = "0 or a finite number above it";
        let remedy = "use 0, or 0.7 for varied text";
        Err(Error::input(Setting::Temperature, self.temperature.to_string(), expected, remedy))
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model produced an end-of-text token.
    EndOfText,
    /// The number of tokens that was asked for is reached.
    TokenLimit,
    /// Prompt and continuation fill the context of the decoder.
    ContextFull,
}

impl Stop {
    /// The reason in a few words, for display.
    pub fn label(self) -> &'static str {
        match self {
            Self::EndOfText => "end of text",
            Self::TokenLimit => "token limit",
            Self::ContextFull => "context full",
        }
    }
}

/// A model on a device with its tokenizer, and the text that is being generated.
#[derive(Debug)]
pub struct Generator {
    decoder: Decoder,
    tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
    begin_token: Option<u32>,
    text: Option<Text>,
}

/// A text that is being generated.
#[derive(Debug)]
struct Text {
    options: GenerateOptions,
    rng: ChaCha8Rng,
    stream: TextStream,
    prompt_tokens: usize,
    /// Logits of the next token, after all tokens that the decoder has read.
    logits: Vec<f32>,
    /// The last token, if the decoder has not read it yet.
    unread: Option<u32>,
    stop: Option<Stop>,
}

impl Generator {
    /// Loads the model onto the device of `rec`, with room for `context` tokens of prompt and continuation together. If
    /// the model has fewer positions, there is room for those. `replacements` replace layers and tensors of the same
    /// name.
    ///
    /// Errors: as [`Decoder::load`]; `Error::Input` if the tokenizer or generation_config.json cannot be used.
    pub async fn load(
        rec: &mut Recorder,
        checkpoint: &Checkpoint,
        replacements: Option<&Replacements>,
        context: usize,
    ) -> Result<Self> {
        let tokenizer = checkpoint.tokenizer().await?;
        let end_tokens = checkpoint.token_ids("eos_token_id").await?;
        let begin_token = checkpoint.token_ids("bos_token_id").await?.first().copied();
        let decoder = Decoder::load(rec, checkpoint, replacements, context).await?;
        Ok(Self { decoder, tokenizer, end_tokens, begin_token, text: None })
    }

    /// Greatest number of tokens of prompt and continuation together.
    pub fn context(&self) -> usize {
        self.decoder.context()
    }

    /// Discards the previous text, if any, and reads `prompt`. For an empty prompt, the beginning-of-text token of the
    /// model is read.
    ///
    /// Errors: `Error::Input` if an option is out of range, if the prompt leaves no room in the context, or if it is
    /// empty and the model has no beginning-of-text token; as [`Decoder::extend`].
    pub async fn start(&mut self, rec: &mut Recorder, prompt: &str, options: GenerateOptions) -> Result<()> {
        options.validate()?;
        let ids = self.prompt_ids(prompt)?;
        self.text = None;
        self.decoder.clear();
        let logits = self.decoder.extend(rec, &ids).await?;
        self.text = Some(Text {
            options,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            prompt_tokens: ids.len(),
            stream: TextStream::after(ids),
            logits,
            unread: None,
            stop: None,
        });
        Ok(())
    }

    /// Generates one more token. Returns the text that it completes, or `None` once the text has ended. The piece is
    /// empty if the token ends within a character. All pieces together are the continuation. If the future is dropped,
    /// the next call does the same work.
    ///
    /// Errors: as [`Decoder::extend`]; `Error::Input` if the tokenizer cannot decode the tokens.
    pub async fn next(&mut self, rec: &mut Recorder) -> Result<Option<String>> {
        let Some(text) = self.text.as_mut().filter(|text| text.stop.is_none()) else { return Ok(None) };
        if let Some(token) = text.unread {
            text.logits = self.decoder.extend(rec, &[token]).await?;
            text.unread = None;
        }
        let token = draw(&text.logits, text.options.temperature, &mut text.rng);
        if self.end_tokens.contains(&token) {
            text.stop = Some(Stop::EndOfText);
            let rest = text.stream.rest(&self.tokenizer)?;
            return Ok(Some(rest).filter(|rest| !rest.is_empty()));
        }
        text.unread = Some(token);
        let mut piece = text.stream.push(&self.tokenizer, token)?;
        let tokens = text.stream.ids().len();
        if tokens - text.prompt_tokens == text.options.tokens {
            text.stop = Some(Stop::TokenLimit);
        } else if tokens == self.decoder.context() {
            text.stop = Some(Stop::ContextFull);
        }
        if text.stop.is_some() {
            piece += &text.stream.rest(&self.tokenizer)?;
        }
        Ok(Some(piece))
    }

    /// Tokens of the prompt. Empty before the first text.
    pub fn prompt(&self) -> &[u32] {
        self.text.as_ref().map_or(&[], |text| &text.stream.ids()[..text.prompt_tokens])
    }

    /// Tokens generated so far, without the end-of-text token. Empty before the first text.
    pub fn generated(&self) -> &[u32] {
        self.text.as_ref().map_or(&[], |text| &text.stream.ids()[text.prompt_tokens..])
    }

    /// Why the text ended, or `None` while it goes on.
    pub fn stop(&self) -> Option<Stop> {
        self.text.as_ref().and_then(|text| text.stop)
    }

    /// Encodes the prompt and checks that its tokens fit the vocabulary and the context.
    fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(prompt)?;
        if ids.is_empty() {
            ids.extend(self.begin_token);
        }
        let (context, vocab_size) = (self.decoder.context(), self.decoder.vocab_size());
        let refuse =
            |found: String, expected: &str, remedy: Phrase| Err(Error::input(Setting::Prompt, found, expected, remedy));
        if ids.is_empty() {
            let expected = "some text, since the model has no beginning-of-text token";
            return refuse("no text".to_owned(), expected, "give the beginning of a text".into());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            let expected = format!("ids below the vocabulary of {vocab_size} in config.json");
            let remedy = "use the tokenizer.json that belongs to the model";
            return refuse(format!("token {id} from tokenizer.json"), &expected, remedy.into());
        }
        if ids.len() >= context {
            let expected = format!("at most {}, to leave room in a context of {context}", context - 1);
            let remedy = phrase!["shorten it, or raise ", Setting::Context, " if the model has more positions"];
            return refuse(format!("{} tokens", ids.len()), &expected, remedy);
        }
        Ok(ids)
    }
}

/// Draws a token. At temperature 0 it is the most likely one. At a temperature T above 0, token i has a probability
/// proportional to exp(logit_i / T).
fn draw(logits: &[f32], temperature: f64, rng: &mut ChaCha8Rng) -> u32 {
    let likeliest = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    if temperature == 0.0 {
        return likeliest as u32;
    }
    let weight = |&logit: &f32| (f64::from(logit - logits[likeliest]) / temperature).exp();
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // `None` only if rounding leaves a tiny rest after the last weight.
    drawn.unwrap_or(likeliest) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_their_probability_says() {
        let logits = [1.0f32, -30.0, 2.0, 0.0];
        for temperature in [0.5, 1.0, 3.0] {
            let weights = logits.map(|logit| (f64::from(logit) / temperature).exp());
            let total: f64 = weights.iter().sum();
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let mut counts = [0.0; 4];
            for _ in 0..20_000 {
                counts[draw(&logits, temperature, &mut rng) as usize] += 1.0 / 20_000.0;
            }
            for (count, weight) in counts.iter().zip(weights) {
                assert!((count - weight / total).abs() < 0.015, "{counts:?} at {temperature}");
            }
        }
    }

    #[test]
    fn extreme_logits_and_temperatures_keep_to_the_likeliest() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        assert_eq!(draw(&[-3e38, 3e38, 1.0], 0.0, &mut rng), 1);
        assert_eq!(draw(&[0.0, 0.0], 0.0, &mut rng), 0, "the first of equals");
        for temperature in [f64::MIN_POSITIVE, 1e-9, 0.01] {
            assert_eq!(draw(&[-3e38, 1.0, 2.0, 3e38], temperature, &mut rng), 3);
        }
        assert!((0..4).contains(&draw(&[-3e38, 1.0, 2.0, 3e38], f64::MAX, &mut rng)));
    }
}
