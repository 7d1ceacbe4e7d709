//! The negative log-likelihood of the next token. The logits come in slabs of the vocabulary. So log-softmax is computed with a
//! running maximum and a running sum, the state of a token. The shader is `nll`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, maximum, sum, vectorised};
use crate::ops::spread;
use crate::{Error, Result};

/// The logit in a state that has seen none. It is below every logit, and finite because shaders may not rely on infinities.
pub(crate) const SENTINEL: f32 = -1e30;

/// Number of floats in the state of a token.
const STATE: usize = 4;

/// The score of one token against its target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// The negative log-likelihood in nats: `log_sum_exp` − the logit of the target. NaN if the target was in no slab.
    pub nll: f64,
    /// `ln Σ_i exp(logit_i)` over the vocabulary.
    pub log_sum_exp: f64,
    /// The vocabulary entry with the largest logit, the first one if several are equal.
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

/// Returns the state of `tokens` tokens before the first slab, `[tokens, 4]`. A row holds the maximum,
/// `Σ exp(logit − maximum)`, the logit of the target, and the vocabulary entry of the maximum.
pub fn start(rec: &mut Recorder, tokens: usize) -> Result<Tensor> {
    rec.upload(&[tokens, STATE], [SENTINEL, 0.0, SENTINEL, 0.0].repeat(tokens))
}

/// Adds one slab of the vocabulary to `state`.
///
/// `logits`: `[tokens, entries]`, whose first column is vocabulary entry `first`; `targets`: `[tokens]`, the target of each
/// token, or a number outside the vocabulary for a token without a target; `state`: `[tokens, 4]`, from [`start`]. Pass each
/// vocabulary entry once, in ascending order. Errors: `Error::Shape` if the shapes do not match, or for vocabulary entries
/// beyond 2²⁴.
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
    // The state holds vocabulary entries as f32.
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

/// The CPU twin for one token.
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

/// Returns the score of each token. `state`: `[tokens, 4]`, after all slabs of the vocabulary.
pub fn finish(state: &[f32]) -> Vec<TokenScore> {
    let score = |&[max, sum, target, argmax]: &[f32; STATE]| {
        let log_sum_exp = f64::from(max) + f64::from(sum).ln();
        let nll = if target == SENTINEL { f64::NAN } else { log_sum_exp - f64::from(target) };
        TokenScore { nll, log_sum_exp, argmax: argmax as u32 }
    };
    state.as_chunks().0.iter().map(score).collect()
}
