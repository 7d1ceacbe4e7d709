//! A prompt continued by the original or by the quantized model, told piece by piece.

use std::cell::Cell;

use aquatint::device::Recorder;
use aquatint::{Checkpoint, Error, GenerateOptions, Generator, Result};
use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::JsValue;

use crate::failure::to_js;
use crate::progress::seconds;

/// What the page asks for.
#[derive(Deserialize)]
pub struct Request {
    prompt: String,
    /// `original` or `quantized`.
    pub which: String,
    tokens: usize,
    temperature: f64,
    seed: u64,
}

/// All of the text, and how long it took.
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
    /// Continues the prompt with `model`. The model is loaded for this one text and let go, as both would fill a small GPU.
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
            // The page's handler does not throw; if it did, there would be nobody to tell.
            let _ = page.call1(&JsValue::NULL, &to_js(&Piece { event: "token", which: &which, text: &text }));
        }
        let tokens = generator.generated().len();
        drop(generator);
        rec.trim();
        Ok(Continuation { text, tokens, seconds: seconds() - since })
    }
}
