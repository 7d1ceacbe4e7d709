//! A model on a device for generation: all of its weights, and a cache of the keys and values of one sequence.
//!
//! Token ids go in, in pieces of any length; the logits of what follows the last of them come out. Knows no text.

use super::block::{Block, Context, State, Weights};
use super::network::{Head, Network, Vocabulary};
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::error::{Setting, phrase};
use crate::family;
use crate::ops::Positions;
use crate::stored::Replacements;
use crate::{Error, Result};

/// Tokens that go through the blocks together: enough to fill a GPU, few enough to fit any binding.
const PIECE: usize = 512;

/// A model and the sequence that it has read so far.
#[derive(Debug)]
pub struct Decoder {
    /// `None` where the head's output matrix is the embedding too.
    embedding: Option<Vocabulary>,
    layers: Vec<Layer>,
    head: Head,
    ropes: Vec<Tensor>,
    context: usize,
    vocab_size: usize,
    /// Tokens whose keys and values are in the caches.
    len: usize,
}

#[derive(Debug)]
struct Layer {
    block: Block,
    weights: Weights,
    state: State,
}

impl Decoder {
    /// Loads the model, with room for a sequence of `context` tokens or, if that is less, of the model's positions.
    /// `replacements` stand in for weights of the same name.
    ///
    /// Errors: what reading the checkpoint gives; a context of 0, or of more keys than an array of the device can hold.
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
        // A GPU says now, not at the first token, whether all of the weights are finite.
        rec.finish().await?;
        let ropes = network.ropes;
        Ok(Self { embedding, layers, head, ropes, context, vocab_size: config.vocab_size, len: 0 })
    }

    /// The most tokens that a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Number of tokens read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends `ids` to the sequence and returns the logits of the token that follows, one per entry of the vocabulary.
    ///
    /// Errors: `Error::Shape` if there are no ids, if one is outside the vocabulary, or if they do not fit the context;
    /// `Error::NotFinite` if a logit is. After an error, or if the future is dropped, the sequence is as it was.
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

    /// The hidden states of `ids`, which stand at `first` and after, behind the last block.
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
