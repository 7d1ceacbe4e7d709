//! Loads the parts of a model from a checkpoint onto a device: the embedding, single blocks, the weights of single
//! stops, and the head.
//!
//! The pipeline, evaluation and the decoder call it. The embedding and the output matrix have many rows, so they are
//! loaded in slabs: ranges of vocabulary entries.

use std::sync::Arc;

use super::block::{Block, Context, Weights};
use super::rope;
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::error::{Advice, Setting, phrase};
use crate::family::{self, Factors, Gains, LinearSpec, ModelConfig, Node, Norm, NormKind, Op, Rope};
use crate::ops::Positions;
use crate::ops::embedding;
use crate::ops::matmul::{Orientation, matmul};
use crate::stored::{Replacements, StoredLinear};
use crate::{Error, Result};

/// The number of sequences of `length` tokens that are processed together on the recorder's device.
///
/// Errors: `Error::Input` naming `Setting::SeqLen` if the device cannot bind the widest activation of one sequence.
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

/// The number of vocabulary entries per slab. A slab is smaller if the device cannot bind this many.
pub(crate) const SLAB_ROWS: usize = 16384;

/// A model in a checkpoint, for sequences of one length. Its parts are loaded when they are asked for.
pub struct Network<'a> {
    checkpoint: &'a Checkpoint,
    replacements: Option<&'a Replacements>,
    seq_len: usize,
    /// The tables of rotary angles for `seq_len` positions, on the device.
    pub(super) ropes: Vec<Tensor>,
}

/// A `[vocab, hidden]` matrix on a device, as slabs that the device can bind. Each slab comes with its first vocabulary
/// entry.
#[derive(Debug)]
pub struct Vocabulary(Vec<(usize, Tensor)>);

/// The head on a device. It computes the logits from the residual stream after the last block.
#[derive(Debug)]
pub struct Head {
    block: Block,
    /// The bias of the output matrix, one piece for each slab. Empty if there is none.
    bias: Vec<Tensor>,
    /// The output matrix. In a model with tied embeddings it is also the embedding.
    pub(super) output: Vocabulary,
}

impl<'a> Network<'a> {
    /// Opens a model for sequences of `seq_len` tokens, and uploads its tables of rotary angles. `replacements` take
    /// the place of weights of the same name.
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

    /// The description of the model.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// The checkpoint that the weights come from.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The tables of rotary angles, on the device.
    pub fn ropes(&self) -> &[Tensor] {
        &self.ropes
    }

    /// The positions of the tokens of whole sequences of `seq_len` tokens.
    pub fn positions(&self) -> Positions {
        Positions::whole(self.seq_len)
    }

    /// What a block needs to process whole sequences of `length` tokens. `length` is at most `seq_len`.
    pub fn context_of(&self, length: usize) -> Context<'_> {
        Context { ropes: &self.ropes, positions: Positions::whole(length), state: None }
    }

    /// The number of sequences in a chunk on the recorder's device. Errors: as [`sequences_per_chunk`].
    pub fn sequences_per_chunk(&self, rec: &Recorder) -> Result<usize> {
        self.sequences_of(rec, self.seq_len)
    }

    /// The number of sequences of `length` tokens in a chunk, for sequences shorter than `seq_len`. Errors: as
    /// [`sequences_per_chunk`].
    pub fn sequences_of(&self, rec: &Recorder, length: usize) -> Result<usize> {
        sequences_per_chunk(self.config(), rec, length)
    }

    /// Loads the weight of a linear layer, or its replacement.
    async fn load_weight(&self, rec: &mut Recorder, linear: &LinearSpec) -> Result<Tensor> {
        match self.replacements.and_then(|r| r.get(&linear.name)) {
            Some(replacement) => rec.upload(&[linear.rows, linear.columns], replacement.dequantize()),
            None => self.checkpoint.load(rec, &linear.weight()).await,
        }
    }

    /// Loads a gain vector or a bias.
    async fn load_vector(&self, rec: &mut Recorder, name: &str) -> Result<Tensor> {
        match self.replacements.and_then(|r| r.tensor(name)) {
            Some(values) => rec.upload(&[values.len()], values.to_vec()),
            None => self.checkpoint.load(rec, name).await,
        }
    }

    /// Asks the system to read the weights of the stop at `node` of block `layer` in the background.
    pub fn prefetch(&self, layer: usize, node: usize) {
        for linear in self.config().blocks[layer].group(node) {
            self.checkpoint.prefetch(&linear.at(layer).name);
        }
    }

    /// Loads block `layer` without the weights of its linear layers: gains, biases and other small tensors.
    ///
    /// Errors: as [`Checkpoint::load`]. This holds for every method here that loads tensors.
    pub async fn block(&self, rec: &mut Recorder, layer: usize) -> Result<Block> {
        self.load_vectors(rec, &self.config().blocks[layer], layer).await
    }

    /// Loads the small tensors of all nodes of `line`, the description of block `layer` or of the head.
    async fn load_vectors(&self, rec: &mut Recorder, line: &Arc<family::Block>, layer: usize) -> Result<Block> {
        let mut vectors = Vec::new();
        for Node { op, makes, .. } in &line.nodes {
            vectors.push(match op {
                Op::Linears(linears) => {
                    let mut biases = Vec::new();
                    for linear in linears {
                        biases.push(match linear.bias() {
                            Some(name) => Some(self.load_vector(rec, &name.at(layer)).await?),
                            None => None,
                        });
                    }
                    biases
                }
                Op::Norm(norm) => self.norm_vectors(rec, norm, layer).await?,
                Op::Position { table, .. } => vec![Some(self.checkpoint.load(rec, &table.at(layer)).await?)],
                Op::Multiply(factors) => {
                    vec![Some(self.load_factors(rec, factors, line.widths[makes[0].0], layer).await?)]
                }
                _ => Vec::new(),
            });
        }
        Ok(Block::new(line.clone(), vectors))
    }

    /// Loads the gains of a norm, and the bias of a LayerNorm. Those that the model does not have are 1 or 0.
    async fn norm_vectors(&self, rec: &mut Recorder, norm: &Norm, layer: usize) -> Result<Vec<Option<Tensor>>> {
        let gains = match (norm.weight(), norm.gains) {
            (Some(name), Gains::PlusOne) => {
                let weight = self.read_vector(&name.at(layer)).await?;
                rec.upload(&[norm.width], weight.iter().map(|w| 1.0 + w).collect())?
            }
            (Some(name), _) => self.load_vector(rec, &name.at(layer)).await?,
            (None, _) => rec.upload(&[norm.width], vec![1.0; norm.width])?,
        };
        let bias = match (norm.kind, norm.bias()) {
            (NormKind::Rms, _) => return Ok(vec![Some(gains)]),
            (NormKind::Layer, Some(name)) => self.load_vector(rec, &name.at(layer)).await?,
            (NormKind::Layer, None) => rec.upload(&[norm.width], vec![0.0; norm.width])?,
        };
        Ok(vec![Some(gains), Some(bias)])
    }

    /// Loads the factors of `width` columns. A single factor is repeated for every column.
    async fn load_factors(&self, rec: &mut Recorder, factors: &Factors, width: usize, layer: usize) -> Result<Tensor> {
        let mut values = Vec::new();
        for part in &factors.parts {
            values.extend(self.read_vector(&part.at(layer)).await?);
        }
        if let [one] = values[..] {
            values.resize(width, one);
        }
        rec.upload(&[width], values)
    }

    /// Reads a small tensor into host memory.
    async fn read_vector(&self, name: &str) -> Result<Vec<f32>> {
        match self.replacements.and_then(|r| r.tensor(name)) {
            Some(values) => Ok(values.to_vec()),
            None => self.checkpoint.read(name).await,
        }
    }

    /// Loads the weights of the linear layers of the stop at `node` of block `layer`, `[rows, columns]` each. Returns
    /// an empty list if `node` is not a stop.
    pub async fn weights(&self, rec: &mut Recorder, layer: usize, node: usize) -> Result<Vec<Tensor>> {
        let mut weights = Vec::new();
        for linear in self.config().blocks[layer].group(node) {
            weights.push(self.load_weight(rec, &linear.at(layer)).await?);
        }
        Ok(weights)
    }

    /// Loads the weights of all linear layers of block `layer`.
    pub async fn all_weights(&self, rec: &mut Recorder, layer: usize) -> Result<Weights> {
        let mut all = Weights::new();
        for node in 0..self.config().blocks[layer].nodes.len() {
            all.push(self.weights(rec, layer, node).await?);
        }
        Ok(all)
    }

    /// The number of vocabulary entries per slab on the recorder's device.
    fn slab_rows(&self, rec: &Recorder) -> usize {
        let config = self.config();
        let fitting = rec.device().largest_array() / (config.hidden_size as u64 * 4);
        SLAB_ROWS.min(usize::try_from(fitting).unwrap_or(usize::MAX)).clamp(1, config.vocab_size)
    }

    /// Loads the vocabulary entries `first..first + rows` of a `[vocab, hidden]` matrix, or fewer at the end of the
    /// vocabulary.
    async fn load_slab(&self, rec: &mut Recorder, name: &str, first: usize, rows: usize) -> Result<Tensor> {
        let last = (first + rows).min(self.config().vocab_size);
        self.checkpoint.load_rows(rec, name, first..last).await
    }

    /// Embeds chunks of windows, where each window has `seq_len` tokens. Returns the embeddings of each chunk,
    /// `[tokens, hidden]`. The embedding is loaded one slab at a time.
    pub async fn embed(&self, rec: &mut Recorder, windows: &[&[Vec<u32>]]) -> Result<Vec<Tensor>> {
        let mut chunks = Vec::new();
        for windows in windows {
            let ids = windows.concat();
            let hidden: Tensor = rec.empty(&[ids.len(), self.config().hidden_size])?;
            chunks.push((rec.upload(&[ids.len()], ids)?, hidden));
        }
        let rows = self.slab_rows(rec);
        for first in (0..self.config().vocab_size).step_by(rows) {
            let slab = self.load_slab(rec, &self.config().embedding, first, rows).await?;
            for (ids, hidden) in &mut chunks {
                embedding::gather(rec, &slab, first, ids, hidden)?;
            }
        }
        Ok(chunks.into_iter().map(|(_, hidden)| hidden).collect())
    }

    /// Loads those tensors of the head that [`Network::embed`] does not load, and drops them again. A quantization run
    /// does not compute with them, but they are part of its result, so numbers that are not finite must be an error.
    pub async fn check_head(&self, rec: &mut Recorder) -> Result<()> {
        self.head_block(rec).await?;
        if !self.config().tie_word_embeddings {
            let rows = self.slab_rows(rec);
            for first in (0..self.config().vocab_size).step_by(rows) {
                self.load_slab(rec, &self.config().output_weight(), first, rows).await?;
            }
        }
        Ok(())
    }

    /// Loads the whole head.
    pub async fn head(&self, rec: &mut Recorder) -> Result<Head> {
        let output = match self.replaced_output() {
            Some(linear) => self.upload_slabs(rec, &linear.dequantize())?,
            None => self.load_vocabulary(rec, &self.config().output_weight()).await?,
        };
        let block = self.head_block(rec).await?;
        let bias = match block.output_bias() {
            Some(bias) => output.cut(rec, bias)?,
            None => Vec::new(),
        };
        Ok(Head { block, bias, output })
    }

    /// Loads the head without the output matrix: the final norm.
    pub async fn head_block(&self, rec: &mut Recorder) -> Result<Block> {
        self.load_vectors(rec, &self.config().head, 0).await
    }

    /// Loads the output matrix in one piece, `[vocab, hidden]`. Errors: `Error::Input` naming `Setting::LmHead` if the
    /// device cannot bind it.
    pub async fn output_matrix(&self, rec: &mut Recorder) -> Result<Tensor> {
        let LinearSpec { rows, columns, .. } = self.config().head_linear();
        let (bytes, most) = (4 * rows as u64 * columns as u64, rec.device().largest_array());
        if bytes > most {
            let found = format!("an output matrix of {bytes} bytes");
            let expected = format!("at most {most}, which this device can bind");
            let remedy = phrase!["leave it out, or use ", Setting::Device.set_to("cpu")];
            return Err(Error::input(Setting::LmHead, found, expected, remedy));
        }
        self.checkpoint.load(rec, &self.config().output_weight()).await
    }

    /// The replacement of the output matrix, if there is one.
    fn replaced_output(&self) -> Option<&StoredLinear> {
        self.replacements.and_then(|r| r.get(&self.config().head_linear().name))
    }

    /// Loads the whole embedding. Returns `None` if the output matrix of the head serves as the embedding.
    pub async fn embedding(&self, rec: &mut Recorder) -> Result<Option<Vocabulary>> {
        if self.config().tie_word_embeddings && self.replaced_output().is_none() {
            return Ok(None);
        }
        self.load_vocabulary(rec, &self.config().embedding).await.map(Some)
    }

    /// Uploads a `[vocab, hidden]` matrix from host memory as slabs.
    fn upload_slabs(&self, rec: &mut Recorder, matrix: &[f32]) -> Result<Vocabulary> {
        let (rows, width) = (self.slab_rows(rec), self.config().hidden_size);
        let slabs = matrix.chunks(rows * width).enumerate();
        let upload = |(index, slab): (usize, &[f32])| {
            Ok((index * rows, rec.upload(&[slab.len() / width, width], slab.to_vec())?))
        };
        Ok(Vocabulary(slabs.map(upload).collect::<Result<_>>()?))
    }

    /// Loads the `[vocab, hidden]` matrix `name` as slabs.
    async fn load_vocabulary(&self, rec: &mut Recorder, name: &str) -> Result<Vocabulary> {
        let rows = self.slab_rows(rec);
        let mut slabs = Vec::new();
        for first in (0..self.config().vocab_size).step_by(rows) {
            slabs.push((first, self.load_slab(rec, name, first, rows).await?));
        }
        Ok(Vocabulary(slabs))
    }
}

impl Vocabulary {
    /// The number of vocabulary entries.
    fn entries(&self) -> usize {
        self.0.iter().map(|(_, slab)| slab.shape()[0]).sum()
    }

    /// Cuts `vector`, which has one number per entry, into pieces as long as the slabs.
    fn cut(&self, rec: &mut Recorder, vector: &Tensor) -> Result<Vec<Tensor>> {
        let column = rec.duplicate(vector)?.reshape(&[self.entries(), 1])?;
        let mut pieces = Vec::new();
        for (first, slab) in &self.0 {
            let rows = slab.shape()[0];
            pieces.push(rec.copy_rows(&column, *first, rows)?.reshape(&[rows])?);
        }
        Ok(pieces)
    }

    /// Looks up the rows of `ids`. Each id must be below the size of the vocabulary. Returns `[tokens, hidden]`.
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
    /// Computes the input of the output matrix, which [`Head::logits`] takes. `hidden`: the residual stream after the
    /// last block, `[tokens, hidden]`, like the result.
    pub fn normalise(&self, rec: &mut Recorder, hidden: &Tensor) -> Result<Tensor> {
        self.block.output_input(rec, hidden)
    }

    /// The first vocabulary entry of each slab.
    pub fn slab_starts(&self) -> impl Iterator<Item = usize> + '_ {
        self.output.0.iter().map(|(first, _)| *first)
    }

    /// Computes the logits of the vocabulary entries of slab number `slab`. `normalised`: `[tokens, hidden]`, from
    /// [`Head::normalise`]. Returns `[tokens, rows of the slab]`.
    pub fn logits(&self, rec: &mut Recorder, normalised: &Tensor, slab: usize) -> Result<Tensor> {
        let logits = matmul(rec, Orientation::Nt, normalised, &self.output.0[slab].1)?;
        self.block.finish_output(rec, logits, self.bias.get(slab))
    }

    /// Computes the logits of one token over the whole vocabulary. `hidden`: the residual stream of the token after the
    /// last block, `[1, hidden]`. Returns a column, `[vocab, 1]`.
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
