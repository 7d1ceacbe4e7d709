//! Text that a model continues, token by token: how a token is drawn, when it stops, and the pieces of text on the way.
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

/// How a text is continued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub tokens: usize,
    /// 0 takes the likeliest token each time; above 0, logits are divided by it and a token is drawn.
    pub temperature: f64,
    /// Seed of the draws. The same seed on the same device gives the same text.
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { tokens: 128, temperature: 0.0, seed: 0 }
    }
}

impl GenerateOptions {
    /// Errors: `Error::Input` naming an option outside its range.
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
    /// The model gave an end-of-text token.
    EndOfText,
    /// As many tokens as were asked for.
    TokenLimit,
    /// Prompt and continuation fill the context.
    ContextFull,
}

impl Stop {
    /// The reason in a few words.
    pub fn label(self) -> &'static str {
        match self {
            Self::EndOfText => "end of text",
            Self::TokenLimit => "token limit",
            Self::ContextFull => "context full",
        }
    }
}

/// A model on a device with its tokenizer, and the text it is working on.
#[derive(Debug)]
pub struct Generator {
    decoder: Decoder,
    tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
    begin_token: Option<u32>,
    text: Option<Text>,
}

/// A text that was started.
#[derive(Debug)]
struct Text {
    options: GenerateOptions,
    rng: ChaCha8Rng,
    stream: TextStream,
    prompt_tokens: usize,
    /// Of the token after all that the decoder has read.
    logits: Vec<f32>,
    /// The last token, where the decoder has not read it.
    unread: Option<u32>,
    stop: Option<Stop>,
}

impl Generator {
    /// Loads the model onto the recorder's device, with room for `context` tokens of prompt and continuation, or as many
    /// as the model has positions if that is less. `replacements` stand in for weights of the same name.
    ///
    /// Errors: as [`Decoder::load`]; a tokenizer or a generation_config.json that cannot be read.
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

    /// The most tokens that prompt and continuation can have together.
    pub fn context(&self) -> usize {
        self.decoder.context()
    }

    /// Reads `prompt` and forgets the text before it. An empty prompt stands for the model's beginning-of-text token.
    ///
    /// Errors: options out of range; a prompt that leaves no room in the context, or an empty one for a model without
    /// that token; what [`Decoder::extend`] gives.
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

    /// One more token: the text that it completes, which is empty in the midst of a character, or `None` at the end. All
    /// pieces together are the continuation. If the future is dropped, the next call does its work.
    ///
    /// Errors: what [`Decoder::extend`] gives.
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

    /// Tokens of the prompt.
    pub fn prompt(&self) -> &[u32] {
        self.text.as_ref().map_or(&[], |text| &text.stream.ids()[..text.prompt_tokens])
    }

    /// Tokens generated so far, without the end-of-text token.
    pub fn generated(&self) -> &[u32] {
        self.text.as_ref().map_or(&[], |text| &text.stream.ids()[text.prompt_tokens..])
    }

    /// Why the text ended, or `None` while it goes on.
    pub fn stop(&self) -> Option<Stop> {
        self.text.as_ref().and_then(|text| text.stop)
    }

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

/// The likeliest token, or at a temperature T above 0 token i with a probability proportional to exp(logit_i / T).
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
    // None only where rounding left a hair after the last weight.
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
