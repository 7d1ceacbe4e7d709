//! A checkpoint on a device: its embedding, its blocks one at a time, its head in slabs of the vocabulary.

use std::sync::Arc;

use super::block::{Block, Context, Weights};
use super::rope;
use crate::checkpoint::Checkpoint;
use crate::device::Recorder;
use crate::error::{Advice, Setting, phrase};
use crate::family::{self, Linear, LinearSpec, ModelConfig, Name, Op, Rope};
use crate::ops::Positions;
use crate::ops::embedding;
use crate::ops::matmul::{Orientation, matmul};
use crate::stored::{Replacements, StoredLinear};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// How many sequences of `length` tokens are processed together on the recorder's device.
///
/// Errors: `Error::Input` naming `Setting::SeqLen` if it cannot bind the widest activation of one.
pub fn sequences_per_chunk(config: &ModelConfig, rec: &Recorder, length: usize) -> Result<usize> {
    let bytes_per_sequence = (length * config.widest() * 4) as u64;
    let fitting = rec.device().largest_array() / bytes_per_sequence;
    if fitting == 0 {
        return Err(Error::input(
            Setting::SeqLen,
            format!("{length} tokens, whose widest activation takes {bytes_per_sequence} bytes"),
            format!("at most {} bytes on this device", rec.device().largest_array()),
            Advice::ShorterSequences,
        ));
    }
    Ok((rec.memory().chunk_tokens / length).clamp(1, usize::try_from(fitting).unwrap_or(usize::MAX)))
}

/// Vocabulary entries per slab, about.
pub(crate) const SLAB_ROWS: usize = 16384;

/// A model read from a checkpoint, block by block, for sequences of one length.
pub struct Network<'a> {
    checkpoint: &'a Checkpoint,
    replacements: Option<&'a Replacements>,
    seq_len: usize,
    /// The tables of rotary angles for `seq_len` positions.
    pub(super) ropes: Vec<Tensor>,
}

/// A `[vocab, hidden]` matrix on a device, in slabs that fit a binding, each with its first entry.
#[derive(Debug)]
pub struct Vocabulary(Vec<(usize, Tensor)>);

/// The head on a device: from the residual stream after the last block to the logits.
#[derive(Debug)]
pub struct Head {
    block: Block,
    /// The output matrix; of a tied model also the embedding.
    pub(super) output: Vocabulary,
}

impl<'a> Network<'a> {
    /// Prepares for sequences of `seq_len` tokens. `replacements` stand in for weights of the same name.
    pub fn new(
        rec: &mut Recorder,
        checkpoint: &'a Checkpoint,
        replacements: Option<&'a Replacements>,
        seq_len: usize,
    ) -> Result<Self> {
        let ropes = &checkpoint.config().ropes;
        let mut upload = |rope: &Rope| rec.upload(&[seq_len, rope.rotated], rope::table(rope, seq_len));
        let ropes = ropes.iter().map(&mut upload).collect::<Result<_>>()?;
        Ok(Self { checkpoint, replacements, seq_len, ropes })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// Where the weights come from.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The tables of rotary angles.
    pub fn ropes(&self) -> &[Tensor] {
        &self.ropes
    }

    /// Where the tokens of whole sequences stand.
    pub fn positions(&self) -> Positions {
        Positions::whole(self.seq_len)
    }

    /// What a block is given with sequences of `length` tokens, from their beginning.
    pub fn context_of(&self, length: usize) -> Context<'_> {
        Context { ropes: &self.ropes, positions: Positions::whole(length), state: None }
    }

    /// How many sequences go into one chunk on the recorder's device.
    pub fn sequences_per_chunk(&self, rec: &Recorder) -> Result<usize> {
        self.sequences_of(rec, self.seq_len)
    }

    /// The same with shorter sequences, of `length` tokens each.
    pub fn sequences_of(&self, rec: &Recorder, length: usize) -> Result<usize> {
        sequences_per_chunk(self.config(), rec, length)
    }

    async fn weight(&self, rec: &mut Recorder, linear: &LinearSpec) -> Result<Tensor> {
        match self.replacements.and_then(|r| r.get(&linear.name)) {
            Some(replacement) => rec.upload(&[linear.rows, linear.columns], replacement.dequantize()),
            None => self.checkpoint.load(rec, &format!("{}.weight", linear.name)).await,
        }
    }

    /// A norm or a bias.
    async fn vector(&self, rec: &mut Recorder, name: &str) -> Result<Tensor> {
        match self.replacements.and_then(|r| r.tensor(name)) {
            Some(values) => rec.upload(&[values.len()], values.to_vec()),
            None => self.checkpoint.load(rec, name).await,
        }
    }

    /// Has the system read the weights of the stop at `node` of block `layer` while something else is done.
    pub fn prefetch(&self, layer: usize, node: usize) {
        for linear in self.config().blocks[layer].group(node) {
            self.checkpoint.prefetch(&linear.at(layer).name);
        }
    }

    /// Block `layer` without the weights of its linear layers. Errors: as [`Checkpoint::load`], and so for all that is read here.
    pub async fn block(&self, rec: &mut Recorder, layer: usize) -> Result<Block> {
        self.vectors(rec, &self.config().blocks[layer], layer).await
    }

    async fn vectors(&self, rec: &mut Recorder, line: &Arc<family::Block>, layer: usize) -> Result<Block> {
        let mut vectors = Vec::new();
        for node in &line.nodes {
            let names: Vec<Option<Name>> = match &node.op {
                Op::Linears(linears) => linears.iter().map(Linear::bias).collect(),
                Op::Norm(norm) => norm.tensors().into_iter().map(Some).collect(),
                Op::Rope { .. } | Op::Attention(_) | Op::Gate(_) | Op::Add => Vec::new(),
            };
            let mut loaded = Vec::new();
            for name in names {
                loaded.push(match name {
                    Some(name) => Some(self.vector(rec, &name.at(layer)).await?),
                    None => None,
                });
            }
            vectors.push(loaded);
        }
        Ok(Block::new(line.clone(), vectors))
    }

    /// The weights of the linear layers of the stop at `node` of block `layer`, `[rows, columns]` each; none for another node.
    pub async fn weights(&self, rec: &mut Recorder, layer: usize, node: usize) -> Result<Vec<Tensor>> {
        let mut weights = Vec::new();
        for linear in self.config().blocks[layer].group(node) {
            weights.push(self.weight(rec, &linear.at(layer)).await?);
        }
        Ok(weights)
    }

    /// The weights of all linear layers of block `layer`.
    pub async fn all_weights(&self, rec: &mut Recorder, layer: usize) -> Result<Weights> {
        let mut all = Weights::new();
        for node in 0..self.config().blocks[layer].nodes.len() {
            all.push(self.weights(rec, layer, node).await?);
        }
        Ok(all)
    }

    fn slab_rows(&self, rec: &Recorder) -> usize {
        let config = self.config();
        let fitting = rec.device().largest_array() / (config.hidden_size as u64 * 4);
        SLAB_ROWS.min(usize::try_from(fitting).unwrap_or(usize::MAX)).clamp(1, config.vocab_size)
    }

    /// Vocabulary entries `first..first + rows` of a `[vocab, hidden]` matrix.
    async fn slab(&self, rec: &mut Recorder, name: &str, first: usize, rows: usize) -> Result<Tensor> {
        let last = (first + rows).min(self.config().vocab_size);
        self.checkpoint.load_rows(rec, name, first..last).await
    }

    /// The embeddings of chunks of windows, each window of `seq_len` tokens: `[tokens, hidden]` per chunk.
    pub async fn embed(&self, rec: &mut Recorder, windows: &[&[Vec<u32>]]) -> Result<Vec<Tensor>> {
        let mut chunks = Vec::new();
        for windows in windows {
            let ids = windows.concat();
            let hidden: Tensor = rec.empty(&[ids.len(), self.config().hidden_size])?;
            chunks.push((rec.upload(&[ids.len()], ids)?, hidden));
        }
        let rows = self.slab_rows(rec);
        for first in (0..self.config().vocab_size).step_by(rows) {
            let slab = self.slab(rec, &self.config().embedding, first, rows).await?;
            for (ids, hidden) in &mut chunks {
                embedding::gather(rec, &slab, first, ids, hidden)?;
            }
        }
        Ok(chunks.into_iter().map(|(_, hidden)| hidden).collect())
    }

    /// Reads what [`Network::embed`] leaves of the head and keeps nothing: a run that quantizes never needs it, but its
    /// numbers go into the result.
    pub async fn check_head(&self, rec: &mut Recorder) -> Result<()> {
        self.head_block(rec).await?;
        if !self.config().tie_word_embeddings {
            let rows = self.slab_rows(rec);
            for first in (0..self.config().vocab_size).step_by(rows) {
                self.slab(rec, &self.config().output_weight(), first, rows).await?;
            }
        }
        Ok(())
    }

    /// The head, all of it on the device.
    pub async fn head(&self, rec: &mut Recorder) -> Result<Head> {
        let output = match self.replaced_output() {
            Some(linear) => self.cut(rec, &linear.dequantize())?,
            None => self.vocabulary(rec, &self.config().output_weight()).await?,
        };
        Ok(Head { block: self.head_block(rec).await?, output })
    }

    /// The head without the output matrix.
    pub async fn head_block(&self, rec: &mut Recorder) -> Result<Block> {
        self.vectors(rec, &self.config().head, 0).await
    }

    /// The output matrix in one piece, `[vocab, hidden]`. Errors: `Error::Input` naming `Setting::LmHead` if the device cannot bind it.
    pub async fn output_matrix(&self, rec: &mut Recorder) -> Result<Tensor> {
        let LinearSpec { rows, columns, .. } = self.config().head_linear();
        let (bytes, most) = ((rows * columns * 4) as u64, rec.device().largest_array());
        if bytes > most {
            let found = format!("an output matrix of {bytes} bytes");
            let expected = format!("at most {most}, which this device can bind");
            let remedy = phrase!["leave it out, or use ", Setting::Device.set_to("cpu")];
            return Err(Error::input(Setting::LmHead, found, expected, remedy));
        }
        self.checkpoint.load(rec, &self.config().output_weight()).await
    }

    fn replaced_output(&self) -> Option<&StoredLinear> {
        self.replacements.and_then(|r| r.get(&self.config().head_linear().name))
    }

    /// The embedding, all of it on the device, or `None` where it is the head's output matrix.
    pub async fn embedding(&self, rec: &mut Recorder) -> Result<Option<Vocabulary>> {
        if self.config().tie_word_embeddings && self.replaced_output().is_none() {
            return Ok(None);
        }
        self.vocabulary(rec, &self.config().embedding).await.map(Some)
    }

    /// Slabs of a `[vocab, hidden]` matrix on the host.
    fn cut(&self, rec: &mut Recorder, matrix: &[f32]) -> Result<Vocabulary> {
        let (rows, width) = (self.slab_rows(rec), self.config().hidden_size);
        let slabs = matrix.chunks(rows * width).enumerate();
        let upload = |(index, slab): (usize, &[f32])| {
            Ok((index * rows, rec.upload(&[slab.len() / width, width], slab.to_vec())?))
        };
        Ok(Vocabulary(slabs.map(upload).collect::<Result<_>>()?))
    }

    async fn vocabulary(&self, rec: &mut Recorder, name: &str) -> Result<Vocabulary> {
        let rows = self.slab_rows(rec);
        let mut slabs = Vec::new();
        for first in (0..self.config().vocab_size).step_by(rows) {
            slabs.push((first, self.slab(rec, name, first, rows).await?));
        }
        Ok(Vocabulary(slabs))
    }
}

impl Vocabulary {
    fn entries(&self) -> usize {
        self.0.iter().map(|(_, slab)| slab.shape()[0]).sum()
    }

    /// The rows of `ids`, each below the size of the vocabulary: `[tokens, hidden]`.
    pub fn gather(&self, rec: &mut Recorder, ids: &[u32]) -> Result<Tensor> {
        let mut rows = rec.empty(&[ids.len(), self.0[0].1.shape()[1]])?;
        let ids = rec.upload(&[ids.len()], ids.to_vec())?;
        for (first, slab) in &self.0 {
            embedding::gather(rec, slab, *first, &ids, &mut rows)?;
        }
        Ok(rows)
    }
}

impl Head {
    /// What the output matrix reads, which [`Head::logits`] takes: `[tokens, width]` from `hidden`, of the last block.
    pub fn normalise(&self, rec: &mut Recorder, hidden: &Tensor) -> Result<Tensor> {
        self.block.last_input(rec, hidden)
    }

    /// First vocabulary entry of each slab.
    pub fn slab_starts(&self) -> impl Iterator<Item = usize> + '_ {
        self.output.0.iter().map(|(first, _)| *first)
    }

    /// The logits of slab number `slab`: `[tokens, rows of the slab]`.
    pub fn logits(&self, rec: &mut Recorder, normalised: &Tensor, slab: usize) -> Result<Tensor> {
        matmul(rec, Orientation::Nt, normalised, &self.output.0[slab].1)
    }

    /// The logits of one token over the whole vocabulary, as a column. `hidden`: `[1, hidden]`, of the last block.
    pub fn token_logits(&self, rec: &mut Recorder, hidden: &Tensor) -> Result<Tensor> {
        let normalised = self.normalise(rec, hidden)?;
        let mut all = rec.empty(&[self.output.entries(), 1])?;
        for (slab, first) in self.slab_starts().enumerate() {
            let logits = self.logits(rec, &normalised, slab)?;
            let column = [logits.len(), 1];
            rec.write_rows(&logits.reshape(&column)?, &mut all, first)?;
        }
        Ok(all)
    }
}
