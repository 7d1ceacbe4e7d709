//! Text generation for the page. The original or the quantized model continues a prompt, and each new piece of text is sent to
//! the page as an event. [`crate::session`] calls it.

use std::cell::Cell;

use aquatint::device::Recorder;
use aquatint::{Checkpoint, Error, GenerateOptions, Generator, Result};
use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::JsValue;

use crate::failure::to_js;
use crate::progress::seconds;

/// The page's request for a continuation.
#[derive(Deserialize)]
pub struct Request {
    prompt: String,
    /// The model to use: `original` or `quantized`.
    pub which: String,
    tokens: usize,
    temperature: f64,
    seed: u64,
}

/// The answer to a [`Request`]: the generated text, its number of tokens, and the time taken.
#[derive(Serialize)]
pub struct Continuation {
    text: String,
    tokens: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct Piece<'a> {
    event: &'static str,
    which: &'a str,
    text: &'a str,
}

impl Request {
    /// Continues the prompt with `model`. The model is loaded for this text and freed afterwards, because a small GPU cannot hold
    /// the original and the quantized model at once.
    ///
    /// Errors: invalid options, a text that does not fit the model, a failure of the device, or `Error::Cancelled`.
    pub async fn run(
        self,
        rec: &mut Recorder,
        model: &Checkpoint,
        page: &Function,
        stop: &Cell<bool>,
    ) -> Result<Continuation> {
        let Self { prompt, which, tokens, temperature, seed } = self;
        let options = GenerateOptions { tokens, temperature, seed };
        options.validate()?;
        // An empty prompt takes one token.
        let context = model.tokenizer().await?.encode(&prompt)?.len().max(1).saturating_add(tokens);
        let mut generator = Generator::load(rec, model, None, context).await?;
        let since = seconds();
        generator.start(rec, &prompt, options).await?;
        let mut text = String::new();
        while let Some(piece) = generator.next(rec).await? {
            if stop.get() {
                return Err(Error::Cancelled);
            }
            text.push_str(&piece);
            // The page's handler does not throw. If it did, the error could not be reported anywhere.
            let _ = page.call1(&JsValue::NULL, &to_js(&Piece { event: "token", which: &which, text: &text }));
        }
        let tokens = generator.generated().len();
        drop(generator);
        rec.trim();
        Ok(Continuation { text, tokens, seconds: seconds() - since })
    }
}
