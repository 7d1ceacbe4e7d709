//! A model on a device for generation, with the keys and values of one sequence.
//!
//! The input is token ids, in pieces of any length. The output is the logits of the token that follows the last of
//! them. Text is not handled here: `generate` calls the decoder and samples from the logits.

use super::block::{Block, Context, State, Weights};
use super::network::{Head, Network, Vocabulary};
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::error::{Setting, phrase};
use crate::family;
use crate::ops::Positions;
use crate::stored::Replacements;
use crate::{Error, Result};

/// The largest number of tokens that go through the blocks together: enough to keep a GPU busy, and few enough to fit
/// any binding.
const PIECE: usize = 512;

/// A model, and the sequence that it has read so far.
#[derive(Debug)]
pub struct Decoder {
    /// The embedding. `None` if the output matrix of the head serves as the embedding, too.
    embedding: Option<Vocabulary>,
    layers: Vec<Layer>,
    head: Head,
    ropes: Vec<Tensor>,
    context: usize,
    vocab_size: usize,
    /// The number of tokens whose keys and values are in the states of the blocks.
    len: usize,
}

/// A block with its weights and its keys and values.
#[derive(Debug)]
struct Layer {
    block: Block,
    weights: Weights,
    state: State,
}

impl Decoder {
    /// Loads the model. `context`: the longest sequence in tokens, capped at the number of positions of the model.
    /// `replacements` take the place of weights of the same name.
    ///
    /// Errors: those of reading the checkpoint; `Error::Input` naming `Setting::Context` if `context` is 0, or if the
    /// keys of one block do not fit an array of the device.
    pub async fn load(
        rec: &mut Recorder,
        checkpoint: &Checkpoint,
        replacements: Option<&Replacements>,
        context: usize,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let context = context.min(config.max_position_embeddings);
        let caches = config.distinct_blocks().flat_map(family::Block::attentions);
        check_context(rec, context, caches.map(|(_, heads)| heads.kv_heads * heads.head_dim).max().unwrap_or(0))?;
        let network = Network::new(rec, checkpoint, replacements, context)?;
        let mut layers = Vec::new();
        for layer in 0..config.blocks.len() {
            let block = network.block(rec, layer).await?;
            let state = block.state(rec, context)?;
            layers.push(Layer { block, weights: network.all_weights(rec, layer).await?, state });
        }
        let (embedding, head) = (network.embedding(rec).await?, network.head(rec).await?);
        // On a GPU, non-finite weights are reported by the next wait. This makes them an error here and not at the
        // first token.
        rec.finish().await?;
        let ropes = network.ropes;
        Ok(Self { embedding, layers, head, ropes, context, vocab_size: config.vocab_size, len: 0 })
    }

    /// The largest number of tokens that a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The number of tokens read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of entries of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Starts a new, empty sequence.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends `ids` to the sequence. Returns the logits of the token that follows, one for each entry of the
    /// vocabulary.
    ///
    /// Errors: `Error::Shape` if `ids` is empty, if an id is outside the vocabulary, or if the sequence would exceed
    /// the context; `Error::NotFinite` if a logit is not finite. If there is an error, or if the future is dropped, the
    /// sequence stays as it was.
    pub async fn extend(&mut self, rec: &mut Recorder, ids: &[u32]) -> Result<Vec<f32>> {
        let known = ids.iter().all(|&id| (id as usize) < self.vocab_size);
        if ids.is_empty() || !known || self.len + ids.len() > self.context() {
            let detail = format!("{} tokens after {} in a context of {}", ids.len(), self.len, self.context());
            return Err(Error::shape("Decoder::extend", detail));
        }
        let mut end = self.len;
        let mut hidden = rec.empty(&[0, 0])?;
        for piece in ids.chunks(PIECE) {
            hidden = self.through_blocks(rec, piece, end)?;
            end += piece.len();
        }
        let last = rec.copy_rows(&hidden, hidden.shape()[0] - 1, 1)?;
        let logits = self.head.token_logits(rec, &last)?;
        let logits = rec.read(&logits).await?;
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(Error::NotFinite {
                place: format!("the logits after {end} tokens"),
                remedy: "check the checkpoint, its weights overflow in this text".into(),
            });
        }
        self.len = end;
        Ok(logits)
    }

    /// Takes `ids`, whose positions start at `first`, through all blocks. Returns their hidden states after the last
    /// block, `[tokens, hidden]`.
    fn through_blocks(&mut self, rec: &mut Recorder, ids: &[u32], first: usize) -> Result<Tensor> {
        let mut hidden = self.embedding.as_ref().unwrap_or(&self.head.output).gather(rec, ids)?;
        let positions = Positions { first, seq_len: ids.len() };
        for Layer { block, weights, state } in &mut self.layers {
            let mut context = Context { ropes: &self.ropes, positions, state: Some(state) };
            hidden = block.forward(rec, weights, &mut context, hidden)?;
        }
        Ok(hidden)
    }
}

/// Checks that the keys of `context` tokens, `width` numbers each, fit one array of the device.
fn check_context(rec: &Recorder, context: usize, width: usize) -> Result<()> {
    let (bytes, largest) = (context as u64 * width as u64 * 4, rec.device().largest_array());
    if context > 0 && bytes <= largest {
        return Ok(());
    }
    let (found, expected) = if context == 0 {
        ("0".to_owned(), "at least 1".to_owned())
    } else {
        let found = format!("{context} tokens, whose keys take {bytes} bytes per block");
        (found, format!("at most {largest} bytes on this device"))
    };
    let remedy = phrase!["choose another number, or use ", Setting::Device.set_to("cpu")];
    Err(Error::input(Setting::Context, found, expected, remedy))
}
