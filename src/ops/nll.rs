//! Next-token scores over a vocabulary whose logits come slab by slab: log-softmax as a running maximum and sum.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, maximum, sum, vectorised};
use crate::ops::spread;
use crate::{Error, Result};

/// Stands for "nothing seen yet" where a logit goes. Finite, because shaders may not rely on infinities.
pub(crate) const SENTINEL: f32 = -1e30;

/// Floats per token of a running state.
const STATE: usize = 4;

/// What one token scores against its target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// `log_sum_exp` − the target's logit; NaN if the target was in no slab.
    pub nll: f64,
    /// `ln Σ_i exp(logit_i)` over the vocabulary.
    pub log_sum_exp: f64,
    /// The entry of the largest logit, the first if several are equal.
    pub argmax: u32,
}

uniform! {
    struct Params of "nll" {
        tokens: u32,
        entries: u32,
        first: u32,
        stride: u32,
    }
}

/// The running state of `tokens` tokens that have seen no logits: `[tokens, 4]`, a row holding the maximum,
/// `Σ exp(logit − maximum)`, the target's logit, and the entry of the maximum.
pub fn start(rec: &mut Recorder, tokens: usize) -> Result<Tensor> {
    rec.upload(&[tokens, STATE], [SENTINEL, 0.0, SENTINEL, 0.0].repeat(tokens))
}

/// Folds a slab of the vocabulary into `state`.
///
/// `logits`: `[tokens, entries]`, its first column being vocabulary entry `first`; `targets`: `[tokens]`, where an entry
/// outside the vocabulary means that there is no target; `state`: `[tokens, 4]` from [`start`]. Each entry of the
/// vocabulary goes in once, lower ones first. Errors: `Error::Shape` if they do not fit, or beyond entry 2²⁴.
pub fn accumulate(
    rec: &mut Recorder,
    logits: &Tensor,
    first: usize,
    targets: &Tensor<u32>,
    state: &mut Tensor,
) -> Result<()> {
    let [tokens, entries] = logits.matrix("nll")?;
    targets.expect_shape("nll", &[tokens])?;
    state.expect_shape("nll", &[tokens, STATE])?;
    // Entries are kept as f32 in the state.
    if first + entries > 1 << 24 {
        return Err(Error::shape("nll", format!("vocabulary entries up to {}", first + entries)));
    }
    if logits.is_empty() {
        return Ok(());
    }
    if !rec.is_gpu() {
        let rows = logits.host().par_chunks(entries).zip(targets.host()).zip(state.host_mut().par_chunks_mut(STATE));
        rows.for_each(|((logits, &target), state)| fold(logits, first, target as usize, state));
        return Ok(());
    }
    let workgroups = spread(tokens);
    let params =
        Params { tokens: tokens as u32, entries: entries as u32, first: first as u32, stride: workgroups[0] as u32 };
    rec.dispatch(Dispatch {
        kernel: "nll",
        params: bytemuck::bytes_of(&params),
        inputs: &[logits.buffer(), targets.buffer()],
        outputs: &[state.buffer()],
        workgroups,
        work: 10.0 * logits.len() as f64,
    })
}

fn fold(logits: &[f32], first: usize, target: usize, state: &mut [f32]) {
    let here = vectorised(
        #[inline(always)]
        || maximum(logits),
    );
    let max = if here > state[0] { here } else { state[0] };
    let added = vectorised(
        #[inline(always)]
        || sum(logits, logits, |logit, _| exp(logit - max)),
    );
    if here > state[0]
        && let Some(index) = logits.iter().position(|&logit| logit == here)
    {
        state[3] = (first + index) as f32;
    }
    if let Some(&logit) = target.checked_sub(first).and_then(|index| logits.get(index)) {
        state[2] = logit;
    }
    state[1] = (f64::from(state[1]) * f64::from(state[0] - max).exp() + added) as f32;
    state[0] = max;
}

/// The scores that a state holds once the whole vocabulary went in, in the order of the tokens.
pub fn finish(state: &[f32]) -> Vec<TokenScore> {
    let score = |&[max, sum, target, argmax]: &[f32; STATE]| {
        let log_sum_exp = f64::from(max) + f64::from(sum).ln();
        let nll = if target == SENTINEL { f64::NAN } else { log_sum_exp - f64::from(target) };
        TokenScore { nll, log_sum_exp, argmax: argmax as u32 }
    };
    state.as_chunks().0.iter().map(score).collect()
}
