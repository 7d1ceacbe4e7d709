//! A text to evaluate models on.

use crate::device::Recorder;
use crate::engine::network::Network;
use crate::eval::{Evaluation, evaluate};
use crate::observer::Observer;
use crate::stored::Replacements;
use crate::{Checkpoint, Result};

/// A text as windows of tokens, all of the same length.
#[derive(Debug, Clone)]
pub struct EvaluationText {
    /// The text as the user knows it.
    pub name: String,
    /// At least one window.
    pub windows: Vec<Vec<u32>>,
}

/// A model to evaluate.
#[derive(Clone, Copy)]
pub struct Evaluated<'a> {
    /// The checkpoint.
    pub model: &'a Checkpoint,
    /// Quantized layers that take the place of its own.
    pub layers: Option<&'a Replacements>,
    /// The model to compare with.
    pub against: Option<&'a Checkpoint>,
}

impl<'a> Evaluated<'a> {
    /// A checkpoint by itself.
    pub fn new(model: &'a Checkpoint) -> Self {
        Self { model, layers: None, against: None }
    }
}

impl EvaluationText {
    /// Tokens per window.
    pub fn seq_len(&self) -> usize {
        self.windows.first().map_or(0, Vec::len)
    }

    /// The perplexity of a model on this text, and how far it is from the model that it is compared with.
    ///
    /// Errors: those of [`evaluate`].
    pub async fn evaluate(
        &self,
        rec: &mut Recorder,
        evaluated: Evaluated<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Evaluation> {
        let network = Network::new(rec, evaluated.model, evaluated.layers, self.seq_len())?;
        let against = evaluated.against.map(|model| Network::new(rec, model, None, self.seq_len())).transpose()?;
        evaluate(rec, &network, against.as_ref(), &self.windows, observer).await
    }
}
