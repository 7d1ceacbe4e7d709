//! The Kullback–Leibler divergence between the next-token distributions of two models. The logits come in slabs of the
//! vocabulary, and each token keeps a running state. The shader is `kl`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, maximum, sum, vectorised};
use crate::ops::nll::SENTINEL;
use crate::ops::spread;

/// Number of floats in the state of a token.
const STATE: usize = 3;

uniform! {
    struct Params of "kl" {
        tokens: u32,
        entries: u32,
        stride: u32,
    }
}

/// Returns the state of `tokens` tokens before the first slab, `[tokens, 3]`. A row holds the maximum of p,
/// `Σ exp(p − maximum)`, and `Σ exp(p − maximum)·(p − q)`, where p are the logits of the reference and q those of the other
/// model.
pub fn start(rec: &mut Recorder, tokens: usize) -> Result<Tensor> {
    rec.upload(&[tokens, STATE], [SENTINEL, 0.0, 0.0].repeat(tokens))
}

/// Adds one slab of the vocabulary to `state`.
///
/// `p_logits`, `q_logits`: `[tokens, entries]`, the logits of the reference and of the other model for the same vocabulary
/// entries; `state`: `[tokens, 3]`, from [`start`]. Errors: `Error::Shape` if the shapes do not match.
pub fn accumulate(rec: &mut Recorder, p_logits: &Tensor, q_logits: &Tensor, state: &mut Tensor) -> Result<()> {
    let [tokens, entries] = p_logits.matrix("kl")?;
    q_logits.expect_shape("kl", p_logits.shape())?;
    state.expect_shape("kl", &[tokens, STATE])?;
    if p_logits.is_empty() {
        return Ok(());
    }
    if !rec.is_gpu() {
        let rows = p_logits.host().par_chunks(entries).zip(q_logits.host().par_chunks(entries));
        rows.zip(state.host_mut().par_chunks_mut(STATE)).for_each(|((p, q), state)| fold(p, q, state));
        return Ok(());
    }
    let workgroups = spread(tokens);
    let params = Params { tokens: tokens as u32, entries: entries as u32, stride: workgroups[0] as u32 };
    rec.dispatch(Dispatch {
        kernel: "kl",
        params: bytemuck::bytes_of(&params),
        inputs: &[p_logits.buffer(), q_logits.buffer()],
        outputs: &[state.buffer()],
        workgroups,
        work: 10.0 * p_logits.len() as f64,
    })
}

/// The CPU twin for one token.
fn fold(p: &[f32], q: &[f32], state: &mut [f32]) {
    let (max, added, weighted) = vectorised(
        #[inline(always)]
        || {
            let here = maximum(p);
            let max = if here > state[0] { here } else { state[0] };
            (max, sum(p, q, |p, _| exp(p - max)), sum(p, q, |p, q| exp(p - max) * (p - q)))
        },
    );
    let kept = f64::from(state[0] - max).exp();
    state[1] = (f64::from(state[1]) * kept + added) as f32;
    state[2] = (f64::from(state[2]) * kept + weighted) as f32;
    state[0] = max;
}

/// Returns KL(P ‖ Q) of each token, in nats: `Σ_i P_i·(p_i − q_i) − lse_p + lse_q`.
///
/// `state`: `[tokens, 3]`, after all slabs of the vocabulary; `lse_p`, `lse_q`: `[tokens]`, the log-sum-exp of the logits of
/// each model, from [`super::nll::finish`]. For equal models the result is not exactly zero. Rounding leaves about 10⁻⁷ times
/// the logits.
pub fn finish(state: &[f32], lse_p: &[f64], lse_q: &[f64]) -> Vec<f64> {
    let rows = state.as_chunks::<STATE>().0.iter().zip(lse_p).zip(lse_q);
    rows.map(|((&[_, sum, weighted], lse_p), lse_q)| f64::from(weighted) / f64::from(sum) - lse_p + lse_q).collect()
}
