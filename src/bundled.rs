//! The model compiled into the program: a LLaMA of 2.3 M parameters with text to calibrate and to evaluate on.
//!
//! Trained on English Wikipedia; the texts are by Wikipedia's contributors, CC BY-SA 3.0.

use crate::Result;
use crate::calibration::TextFile;
use crate::checkpoint::{Checkpoint, MemorySource, Source};

/// Name under which the model shows up in messages and reports.
pub const NAME: &str = "bundled tiny-llama";

macro_rules! fixture {
    ($file:literal) => {
        ($file, include_bytes!(concat!("../tests/fixtures/tiny-llama/", $file)).as_slice())
    };
}

static FILES: [(&str, &[u8]); 5] = [
    fixture!("config.json"),
    fixture!("generation_config.json"),
    fixture!("model.safetensors"),
    fixture!("tokenizer.json"),
    fixture!("tokenizer_config.json"),
];

/// The files of the checkpoint.
pub fn sources() -> Vec<Box<dyn Source>> {
    FILES.into_iter().map(|(name, bytes)| Box::new(MemorySource::new(name, bytes)) as Box<dyn Source>).collect()
}

/// The checkpoint, opened.
pub async fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::from_sources(NAME, sources()).await
}

/// Text to calibrate on, part of what the model was trained on.
pub fn calibration_text() -> TextFile {
    text(fixture!("calibration.txt"))
}

/// Text the model has not seen.
pub fn evaluation_text() -> TextFile {
    text(fixture!("evaluation.txt"))
}

fn text((name, bytes): (&str, &'static [u8])) -> TextFile {
    TextFile { name: name.to_owned(), bytes: bytes.into() }
}
