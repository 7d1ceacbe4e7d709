//! The bundled model, compiled into the program: a LLaMA with 2.3 M parameters, and texts for calibration and
//! evaluation.
//!
//! The model was trained on English Wikipedia. The texts are by Wikipedia's contributors, CC BY-SA 3.0.

use crate::Result;
use crate::calibration::TextFile;
use crate::checkpoint::{Checkpoint, MemorySource, Source};

/// Name of the model in messages and reports.
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

/// The files of the model.
pub fn sources() -> Vec<Box<dyn Source>> {
    FILES.into_iter().map(|(name, bytes)| Box::new(MemorySource::new(name, bytes)) as Box<dyn Source>).collect()
}

/// Opens the model.
pub async fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::from_sources(NAME, sources()).await
}

/// Text for calibration. It is part of the training text.
pub fn calibration_text() -> TextFile {
    text(fixture!("calibration.txt"))
}

/// Text for evaluation. The model has not seen it in training.
pub fn evaluation_text() -> TextFile {
    text(fixture!("evaluation.txt"))
}

fn text((name, bytes): (&str, &'static [u8])) -> TextFile {
    TextFile { name: name.to_owned(), bytes: bytes.into() }
}
