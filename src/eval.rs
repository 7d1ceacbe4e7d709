//! Perplexity of a model on a text, and how far its next-token distribution is from another model's (algorithms.md §8).

pub mod tasks;

use serde::Serialize;

use crate::device::{Recorder, Tensor};
use crate::engine::network::{Head, Network, SLAB_ROWS};
use crate::error::Setting;
use crate::observer::{Event, Observer};
use crate::ops::{kl, nll};
use crate::{Error, Result};

/// Tokens whose logits over one slab of the vocabulary exist at the same time.
const HEAD_TOKENS: usize = 1024;

/// What a model makes of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of windows.
    pub windows: usize,
    /// Tokens per window; all but the first are predicted.
    pub seq_len: usize,
    /// Predicted tokens.
    pub predicted: usize,
    /// Mean negative log-likelihood of a predicted token, in nats.
    pub nll: f64,
    /// exp(nll).
    pub perplexity: f64,
    /// The same text under the other model, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// Comparison with another model on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// The other model's perplexity.
    pub perplexity: f64,
    /// Mean KL(other ‖ this) per predicted token, in nats: the other model is the reference.
    pub kl: f64,
    /// Share of predicted tokens for which both models rank the same token first.
    pub top1_agreement: f64,
}

#[derive(Default)]
struct Sums {
    predicted: usize,
    nll: f64,
    against_nll: f64,
    kl: f64,
    agreed: usize,
}

/// Evaluates `network` on `windows` (each as long as the network was made for), alone or `against` another network of
/// the same vocabulary.
///
/// Goes through the blocks once, or more often with fewer windows each time where the memory of `rec` cannot hold the hidden
/// states of all: with the same result.
///
/// Errors: `Error::NotFinite` if a model's logits are; what the device reports.
pub async fn evaluate(
    rec: &mut Recorder,
    network: &Network<'_>,
    against: Option<&Network<'_>>,
    windows: &[Vec<u32>],
    observer: &mut dyn Observer,
) -> Result<Evaluation> {
    let seq_len = windows.first().map_or(0, Vec::len);
    let per_chunk = network.sequences_per_chunk(rec)?;
    if let Some(other) = against.filter(|other| other.config().vocab_size != network.config().vocab_size) {
        return Err(vocabularies_differ(network, other));
    }
    let networks: Vec<&Network<'_>> = [network].into_iter().chain(against).collect();
    let at_a_time = per_chunk * chunks_at_a_time(rec, &networks, per_chunk * seq_len);
    let mut sums = Sums::default();
    let (mut scored, all) = (0, windows.len());
    let mut passes = Passes { observer, done: 0, all: all.div_ceil(at_a_time) };
    for windows in windows.chunks(at_a_time) {
        let hidden = last_hidden(rec, network, windows, per_chunk, &mut passes).await?;
        let other = match against {
            None => None,
            Some(other) => {
                Some((last_hidden(rec, other, windows, per_chunk, &mut passes).await?, other.head(rec).await?))
            }
        };
        let head = network.head(rec).await?;
        for (index, windows) in windows.chunks(per_chunk).enumerate() {
            let targets = next_tokens(windows);
            let other = other.as_ref().map(|(hidden, head)| (&hidden[index], head));
            score_chunk(rec, (&hidden[index], &head), other, &targets, seq_len, &mut sums).await?;
            scored += windows.len();
            passes.observer.event(&Event::EvaluationHead { scored, windows: all });
        }
        passes.done += 1;
    }
    let count = sums.predicted as f64;
    let nll = sums.nll / count;
    if !nll.is_finite() {
        return Err(Error::NotFinite {
            place: "the model's log-likelihood".to_string(),
            remedy: "check the checkpoint, its weights overflow in this text".into(),
        });
    }
    let against = against.map(|_| Against {
        perplexity: (sums.against_nll / count).exp(),
        kl: sums.kl / count,
        top1_agreement: sums.agreed as f64 / count,
    });
    Ok(Evaluation { windows: windows.len(), seq_len, predicted: sums.predicted, nll, perplexity: nll.exp(), against })
}

/// Counts the blocks of all passes together.
struct Passes<'a> {
    observer: &'a mut dyn Observer,
    done: usize,
    all: usize,
}

impl Observer for Passes<'_> {
    fn event(&mut self, event: &Event) {
        match *event {
            Event::EvaluationBlock { block, blocks } => self
                .observer
                .event(&Event::EvaluationBlock { block: self.done * blocks + block, blocks: self.all * blocks }),
            _ => self.observer.event(event),
        }
    }

    fn seconds(&self) -> f64 {
        self.observer.seconds()
    }

    fn cancelled(&self) -> bool {
        self.observer.cancelled()
    }
}

/// Chunks of `tokens` tokens whose hidden states in all networks fit the memory of `rec` beside a block, the heads, a chunk within a block and
/// its logits; at least one.
fn chunks_at_a_time(rec: &Recorder, networks: &[&Network<'_>], tokens: usize) -> usize {
    let Some(limit) = rec.memory().device else { return usize::MAX / tokens.max(1) };
    let mut taken = if rec.is_gpu() { 0 } else { rec.memory().beside };
    let (mut largest, mut states) = (0, 0);
    for config in networks.iter().map(|network| network.config()) {
        let weights = config.largest_block();
        let head = config.vocab_size * config.hidden_size;
        let within = tokens * (2 * config.hidden_size + 3 * config.widest());
        taken += 4 * (head + 2 * HEAD_TOKENS * SLAB_ROWS.min(config.vocab_size)) as u64;
        largest = largest.max(4 * (weights + within) as u64);
        states += 4 * (tokens * config.hidden_size) as u64;
    }
    // A GPU's buffers come in sizes an eighth apart.
    let [beside, states] =
        [taken + largest, states.max(1)].map(|bytes| if rec.is_gpu() { bytes / 8 * 9 + 9 } else { bytes });
    (limit.saturating_sub(beside) / states).max(1) as usize
}

fn vocabularies_differ(network: &Network<'_>, other: &Network<'_>) -> Error {
    Error::input(
        Setting::Against,
        format!("a vocabulary of {}", other.config().vocab_size),
        format!("the evaluated model's {}", network.config().vocab_size),
        "compare models that share a tokenizer",
    )
}

/// The hidden states after the last block, chunk by chunk.
async fn last_hidden(
    rec: &mut Recorder,
    network: &Network<'_>,
    windows: &[Vec<u32>],
    per_chunk: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Tensor>> {
    let chunks: Vec<&[Vec<u32>]> = windows.chunks(per_chunk).collect();
    let lengths = vec![windows.first().map_or(0, Vec::len); chunks.len()];
    let chunks = network.embed(rec, &chunks).await?;
    through_blocks(rec, network, chunks, &lengths, observer).await
}

/// The hidden states after the last block from those before the first, chunk by chunk. `lengths`: tokens per sequence of
/// each chunk, none longer than the network was made for.
async fn through_blocks(
    rec: &mut Recorder,
    network: &Network<'_>,
    mut chunks: Vec<Tensor>,
    lengths: &[usize],
    observer: &mut dyn Observer,
) -> Result<Vec<Tensor>> {
    let blocks = network.config().blocks.len();
    for index in 0..blocks {
        observer.go_on()?;
        let (block, weights) = (network.block(rec, index).await?, network.all_weights(rec, index).await?);
        for (chunk, &length) in chunks.iter_mut().zip(lengths) {
            let hidden = std::mem::replace(chunk, rec.empty(&[0])?);
            *chunk = block.forward(rec, &weights, &mut network.context_of(length), hidden)?;
        }
        rec.submit()?;
        observer.event(&Event::EvaluationBlock { block: index + 1, blocks });
    }
    Ok(chunks)
}

/// For each token the one that follows; the last of a window gets itself, and is not counted.
fn next_tokens(windows: &[Vec<u32>]) -> Vec<u32> {
    windows.iter().flat_map(|w| w[1..].iter().chain(w.last())).copied().collect()
}

/// The logits of every position of `hidden`: `[tokens, vocab]` in one piece, for models small enough.
///
/// `hidden`: of [`Network::embed`] after all blocks. Used to compare with published implementations.
pub async fn logits(rec: &mut Recorder, network: &Network<'_>, windows: &[Vec<u32>]) -> Result<Vec<f32>> {
    let per_chunk = network.sequences_per_chunk(rec)?;
    let chunks = last_hidden(rec, network, windows, per_chunk, &mut ()).await?;
    let head = network.head(rec).await?;
    let vocab = network.config().vocab_size;
    let mut all = Vec::new();
    for chunk in &chunks {
        let normalised = head.normalise(rec, chunk)?;
        let start = all.len();
        all.resize(start + chunk.shape()[0] * vocab, 0.0);
        for (slab, first) in head.slab_starts().enumerate() {
            let logits = head.logits(rec, &normalised, slab)?;
            let width = logits.shape()[1];
            for (row, values) in rec.read(&logits).await?.chunks(width).enumerate() {
                let at = start + row * vocab + first;
                all[at..at + width].copy_from_slice(values);
            }
        }
    }
    Ok(all)
}

/// Adds the predicted tokens of one chunk to `sums`, a slice of tokens at a time.
async fn score_chunk(
    rec: &mut Recorder,
    (hidden, head): (&Tensor, &Head),
    other: Option<(&Tensor, &Head)>,
    targets: &[u32],
    seq_len: usize,
    sums: &mut Sums,
) -> Result<()> {
    let width = hidden.shape()[1];
    let values = rec.read(hidden).await?;
    let other_values = match other {
        Some((hidden, _)) => Some(rec.read(hidden).await?),
        None => None,
    };
    for (slice, targets) in targets.chunks(HEAD_TOKENS).enumerate() {
        let start = slice * HEAD_TOKENS;
        let range = start * width..(start + targets.len()) * width;
        let part = rec.upload(&[targets.len(), width], values[range.clone()].to_vec())?;
        let other = match (&other_values, other) {
            (Some(values), Some((_, head))) => {
                let width = values.len() / (hidden.shape()[0]);
                let range = start * width..(start + targets.len()) * width;
                Some((rec.upload(&[targets.len(), width], values[range].to_vec())?, head))
            }
            _ => None,
        };
        let counted = |token: usize| !(start + token + 1).is_multiple_of(seq_len);
        score_slice(rec, (&part, head), other.as_ref().map(|(t, h)| (t, *h)), targets, counted, sums).await?;
    }
    Ok(())
}

async fn score_slice(
    rec: &mut Recorder,
    (hidden, head): (&Tensor, &Head),
    other: Option<(&Tensor, &Head)>,
    targets: &[u32],
    counted: impl Fn(usize) -> bool,
    sums: &mut Sums,
) -> Result<()> {
    let tokens = targets.len();
    let targets = rec.upload(&[tokens], targets.to_vec())?;
    let normalised = head.normalise(rec, hidden)?;
    let mut state = nll::start(rec, tokens)?;
    let mut reference = match other {
        Some((hidden, head)) => {
            Some((head.normalise(rec, hidden)?, head, nll::start(rec, tokens)?, kl::start(rec, tokens)?))
        }
        None => None,
    };
    for (slab, first) in head.slab_starts().enumerate() {
        let q = head.logits(rec, &normalised, slab)?;
        nll::accumulate(rec, &q, first, &targets, &mut state)?;
        if let Some((normalised, head, state, divergence)) = &mut reference {
            let p = head.logits(rec, normalised, slab)?;
            nll::accumulate(rec, &p, first, &targets, state)?;
            kl::accumulate(rec, &p, &q, divergence)?;
        }
    }
    let scores = nll::finish(&rec.read(&state).await?);
    let counted: Vec<usize> = (0..tokens).filter(|&t| counted(t)).collect();
    sums.predicted += counted.len();
    sums.nll += counted.iter().map(|&t| scores[t].nll).sum::<f64>();
    if let Some((_, _, state, divergence)) = reference {
        let references = nll::finish(&rec.read(&state).await?);
        let lse = |scores: &[nll::TokenScore]| scores.iter().map(|s| s.log_sum_exp).collect::<Vec<_>>();
        let kl = kl::finish(&rec.read(&divergence).await?, &lse(&references), &lse(&scores));
        sums.against_nll += counted.iter().map(|&t| references[t].nll).sum::<f64>();
        sums.kl += counted.iter().map(|&t| kl[t]).sum::<f64>();
        sums.agreed += counted.iter().filter(|&&t| references[t].argmax == scores[t].argmax).count();
    }
    Ok(())
}
