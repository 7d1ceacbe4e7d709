//! Evaluates a model on windows of text: perplexity, and the KL divergence of its next-token distribution from that of
//! another model (algorithms.md §8).
//!
//! Hidden states of all windows go through the blocks one block at a time. The head then scores them chunk by chunk.
//! `tasks` answers multiple-choice questions with the same parts.

pub mod tasks;

use serde::Serialize;

use crate::device::{Recorder, Tensor};
use crate::engine::network::{Head, Network, SLAB_ROWS};
use crate::error::Setting;
use crate::observer::{Event, Observer};
use crate::ops::{kl, nll};
use crate::{Error, Result};

/// Tokens that the head scores at a time. Their logits over one slab of the vocabulary are in memory together.
const HEAD_TOKENS: usize = 1024;

/// The result of an evaluation on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of windows.
    pub windows: usize,
    /// Tokens per window. All but the first are predicted.
    pub seq_len: usize,
    /// Number of predicted tokens.
    pub predicted: usize,
    /// Mean negative log-likelihood of a predicted token, in nats.
    pub nll: f64,
    /// Perplexity, exp(nll).
    pub perplexity: f64,
    /// Comparison with the other model, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// The comparison of the evaluated model with another model on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// Perplexity of the other model.
    pub perplexity: f64,
    /// Mean KL divergence KL(other ‖ evaluated) per predicted token, in nats. The other model is the reference.
    pub kl: f64,
    /// Share of predicted tokens for which both models rank the same token first.
    pub top1_agreement: f64,
}

/// Sums over the predicted tokens so far.
#[derive(Default)]
struct Sums {
    predicted: usize,
    nll: f64,
    against_nll: f64,
    kl: f64,
    agreed: usize,
}

/// Evaluates `network` on `windows`, alone or in comparison with the network `against`, which must have the same
/// vocabulary. Each window is as long as the sequences for which the network was made.
///
/// All windows go through the blocks together if the memory of `rec` can hold their hidden states. Otherwise several
/// passes are made with fewer windows each. The result is the same.
///
/// Errors: `Error::Input` if the vocabularies differ; `Error::NotFinite` if the logits of the model are not finite;
/// errors of the device; `Error::Cancelled`.
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
    let mut passes = PassObserver { observer, done: 0, all: all.div_ceil(at_a_time) };
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

/// Forwards events to the observer, with blocks counted over all passes together.
struct PassObserver<'a> {
    observer: &'a mut dyn Observer,
    done: usize,
    all: usize,
}

impl Observer for PassObserver<'_> {
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

/// Number of chunks of `tokens` tokens that go through the blocks together; at least one.
///
/// The memory of `rec` must hold their hidden states in all networks. It must also hold the largest block with one
/// chunk inside it, and the heads with their logits.
fn chunks_at_a_time(rec: &Recorder, networks: &[&Network<'_>], tokens: usize) -> usize {
    let Some(limit) = rec.memory().device else { return usize::MAX / tokens.max(1) };
    let mut taken = if rec.is_gpu() { 0 } else { rec.memory().beside };
    let (mut largest, mut states) = (0, 0);
    for config in networks.iter().map(|network| network.config()) {
        let weights = config.largest_block();
        let [tokens, hidden, vocabulary] = [tokens, config.hidden_size, config.vocab_size].map(|size| size as u64);
        let within = tokens * (2 * hidden + 3 * config.widest() as u64);
        taken += 4 * (vocabulary * hidden + 2 * HEAD_TOKENS as u64 * vocabulary.min(SLAB_ROWS as u64));
        largest = largest.max(4 * (weights + within));
        states += 4 * tokens * hidden;
    }
    // The sizes of GPU buffers are an eighth apart, so a buffer may be larger than asked for by that much.
    let [beside, states] =
        [taken + largest, states.max(1)].map(|bytes| if rec.is_gpu() { bytes / 8 * 9 + 9 } else { bytes });
    (limit.saturating_sub(beside) / states).max(1) as usize
}

/// The error for two models with vocabularies of different sizes.
fn vocabularies_differ(network: &Network<'_>, other: &Network<'_>) -> Error {
    Error::input(
        Setting::Against,
        format!("a vocabulary of {}", other.config().vocab_size),
        format!("the evaluated model's {}", network.config().vocab_size),
        "compare models that share a tokenizer",
    )
}

/// The hidden states after the last block, one tensor per chunk of `per_chunk` windows.
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

/// Takes the hidden states before the first block through all blocks, chunk by chunk. `lengths`: tokens per sequence in
/// each chunk, at most the length for which the network was made.
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

/// The target of each token: the token that follows. The last token of a window gets itself as target and is not
/// counted.
fn next_tokens(windows: &[Vec<u32>]) -> Vec<u32> {
    windows.iter().flat_map(|w| w[1..].iter().chain(w.last())).copied().collect()
}

/// The logits at every position, `[tokens, vocab]`, in one array. Only for models small enough.
///
/// `windows`: token ids, all of one length. Tests use this to compare with published implementations.
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

/// Adds the scores of the predicted tokens in one chunk to `sums`. It works on slices of tokens, one at a time.
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

/// Adds the scores of one slice of tokens to `sums`. `hidden` and `head` belong to the evaluated model, `other` to the
/// reference. `counted` tells whether the token at an index is a predicted one.
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
