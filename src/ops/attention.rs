//! Causal grouped-query attention within each sequence. A sliding window, a bound of the scores and ALiBi are optional. The shader
//! is `attention`.
//!
//! A sequence may be computed in pieces. The keys and values of its earlier tokens are then in a cache.

use std::ops::Range;

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, maximum, sum, vectorised};
use crate::ops::{Positions, softcap, spread};
use crate::{Error, Result};

/// The division of the columns of Q, K and V into heads, the scores, and the keys that a query sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key heads, and of value heads. Query head h reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Number of columns per head, 1 to 512.
    pub head_dim: usize,
    /// Number of the most recent keys that a query sees, including its own. `None`: it sees all keys up to its own.
    pub window: Option<usize>,
    /// Factor of the scores, in most models 1/√head_dim.
    pub scale: f32,
    /// The bound c of the scores, positive: c·tanh(score/c) takes the place of a scaled score.
    pub softcap: Option<f32>,
    /// Factor of the ALiBi term (Press, Smith and Lewis, "Train Short, Test Long", 2022): `factor·slope·(j − i)` is added to the
    /// scaled and bounded score of the query at position i and the key at position j. [`Heads::slope`] gives the slope of each
    /// head.
    pub alibi: Option<f32>,
}

impl Heads {
    /// Position of the first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The largest power of two that is not above the number of heads.
    fn regular(&self) -> usize {
        1 << self.heads.ilog2()
    }

    /// The ALiBi slope of a query head. If the number n of heads is a power of two, head h has the slope 2^(−8·(h + 1)/n).
    /// Otherwise the first heads have the slopes for the next lower power of two, and the others have the slopes of the heads 0, 2,
    /// 4, … for twice that power.
    pub fn slope(&self, head: usize) -> f64 {
        let regular = self.regular();
        let index = if head < regular { 2 * (head + 1) } else { 2 * (head - regular) + 1 };
        (-4.0 * index as f64 / regular as f64).exp2()
    }

    /// Checks the shapes. Returns the number of rows of K and V per sequence, which may be larger than its number of tokens.
    /// Errors: `Error::Shape`.
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, positions: Positions) -> Result<usize> {
        let Self { heads, kv_heads, head_dim, window, .. } = *self;
        let ([tokens, _], [rows, _]) = (q.matrix("attention")?, k.matrix("attention")?);
        let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
        let heads_fit = (1..=512).contains(&head_dim) && heads > 0 && divides(kv_heads, heads) && window != Some(0);
        let capped = self.softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite());
        let sequences = tokens.checked_div(positions.seq_len).unwrap_or(0);
        let capacity = rows.checked_div(sequences).unwrap_or(0);
        let whole = divides(positions.seq_len, tokens) && divides(sequences, rows);
        if !heads_fit || !capped || !whole || capacity < positions.end() {
            let detail = format!("{self:?}, {positions:?} for {tokens} tokens and {rows} keys");
            return Err(Error::shape("attention", detail));
        }
        q.expect_shape("attention", &[tokens, heads * head_dim])?;
        k.expect_shape("attention", &[rows, kv_heads * head_dim])?;
        v.expect_shape("attention", &[rows, kv_heads * head_dim])?;
        Ok(capacity)
    }
}

uniform! {
    struct Params of "attention" {
        count: u32,
        stride: u32,
        parts: u32,
        tiles: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        seq_len: u32,
        first: u32,
        capacity: u32,
        window: u32,
        scale: f32,
        softcap: f32,
        alibi: f32,
        regular: u32,
    }
}

/// Computes `out[i] = Σ_j softmax_j(scale·q[i]·k[j])·v[j]` for each head. Here i and j are positions in one sequence, and the sum
/// runs over the keys `i − window < j ≤ i`. [`Heads`] says what changes the scores before the softmax.
///
/// `q`: `[sequences·seq_len, heads·head_dim]`, the tokens at `positions`. `k`, `v`: `[sequences·capacity, kv_heads·head_dim]`.
/// The rows of a sequence start at position 0 and reach at least to its last query. The rows after that are free places of a
/// cache and are not read. The result has the shape of `q`. Errors: `Error::Shape` if the shapes do not match.
pub fn attention(
    rec: &mut Recorder,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    positions: Positions,
) -> Result<Tensor> {
    let capacity = heads.check(q, k, v, positions)?;
    let mut out = rec.empty(q.shape())?;
    if !rec.is_gpu() {
        Twin { q: q.host(), k: matrix(k), v: matrix(v), heads, positions, capacity }.run(out.host_mut());
        return Ok(out);
    }
    let Positions { first, seq_len } = positions;
    let (tiles, parts) = (seq_len.div_ceil(64), heads.head_dim.div_ceil(256));
    let count = q.shape()[0] / seq_len * heads.heads * tiles * parts;
    let workgroups = spread(count);
    let params = Params {
        count: count as u32,
        stride: workgroups[0] as u32,
        parts: parts as u32,
        tiles: tiles as u32,
        heads: heads.heads as u32,
        kv_heads: heads.kv_heads as u32,
        head_dim: heads.head_dim as u32,
        seq_len: seq_len as u32,
        first: first as u32,
        capacity: capacity as u32,
        window: heads.window.map_or(positions.end(), |window| window.min(positions.end())) as u32,
        scale: heads.scale,
        softcap: heads.softcap.unwrap_or(0.0),
        alibi: heads.alibi.unwrap_or(0.0),
        regular: heads.regular() as u32,
    };
    rec.dispatch(Dispatch {
        // The smallest variant whose registers hold an output of this head_dim, or the largest, which holds a part of it.
        kernel: match heads.head_dim {
            ..=64 => "attention_64",
            65..=128 => "attention_128",
            _ => "attention_256",
        },
        params: bytemuck::bytes_of(&params),
        inputs: &[q.buffer(), k.buffer(), v.buffer()],
        outputs: &[out.buffer()],
        workgroups,
        // On average, a query sees all earlier keys and half of the new ones. A window only reduces this. Every part computes the
        // scores.
        work: 2.0 * (1 + parts) as f64 * q.len() as f64 * (first as f64 + seq_len as f64 / 2.0),
    })?;
    Ok(out)
}

/// A matrix in host memory, as faer takes it.
fn matrix(tensor: &Tensor) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(tensor.host(), tensor.shape()[0], tensor.shape()[1])
}

/// Number of queries per task. It is large enough for fast products, and small enough that few scores beyond the diagonal are
/// computed.
const QUERIES: usize = 64;

/// The CPU twin. A task computes one block of queries, with one pair of products for each key head. The query heads that share a
/// key head are stacked as rows, so that its keys and values are packed only once.
struct Twin<'a> {
    q: &'a [f32],
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
    heads: Heads,
    positions: Positions,
    capacity: usize,
}

impl<'a> Twin<'a> {
    /// Computes all rows of the result. `out` has the shape of `q`.
    fn run(&self, out: &mut [f32]) {
        let width = self.heads.heads * self.heads.head_dim;
        out.par_chunks_mut(self.positions.seq_len * width).enumerate().for_each(|(sequence, out)| {
            out.par_chunks_mut(QUERIES * width).enumerate().for_each(|(block, out)| {
                self.block(sequence, block * QUERIES, out);
            });
        });
    }

    /// Computes the queries of `sequence` from index `row` on, as many as `out` has rows.
    fn block(&self, sequence: usize, row: usize, out: &mut [f32]) {
        let Heads { heads, kv_heads, head_dim, scale, .. } = self.heads;
        let (width, group) = (heads * head_dim, heads / kv_heads);
        let queries = out.len() / width;
        let first = self.positions.first + row;
        let (first_key, keys) = (self.heads.first_key(first), first + queries);
        let (q_start, k_start) = (sequence * self.positions.seq_len + row, sequence * self.capacity + first_key);
        let span = group * head_dim;
        let mut stacked = vec![0.0; queries * span];
        let mut scores = vec![0.0; queries * group * (keys - first_key)];
        for kv_head in 0..kv_heads {
            for (stacked, q) in stacked.chunks_exact_mut(span).zip(self.q[q_start * width..].chunks_exact(width)) {
                stacked.copy_from_slice(&q[kv_head * span..][..span]);
            }
            let part = |x: MatRef<'a, f32>| x.submatrix(k_start, kv_head * head_dim, keys - first_key, head_dim);
            let (k, v) = (part(self.k), part(self.v));
            let s = MatMut::from_row_major_slice_mut(&mut scores, queries * group, keys - first_key);
            let q = MatRef::from_row_major_slice(&stacked, queries * group, head_dim);
            product(s, Accum::Replace, q, k.transpose(), scale, Par::Seq);
            let sums = self.softmax(&mut scores, kv_head, first, first_key..keys);
            let p = MatRef::from_row_major_slice(&scores, queries * group, keys - first_key);
            let out_rows = MatMut::from_row_major_slice_mut(&mut stacked, queries * group, head_dim);
            product(out_rows, Accum::Replace, p, v, 1.0, Par::Seq);
            for (row, (value, sum)) in stacked.chunks_exact(head_dim).zip(sums).enumerate() {
                let at = row / group * width + kv_head * span + row % group * head_dim;
                for (out, value) in out[at..at + head_dim].iter_mut().zip(value) {
                    *out = value / sum;
                }
            }
        }
    }

    /// Replaces each row of scaled scores by exp(score − maximum), and by 0 for keys that the query does not see. Returns the sum
    /// of each row. `first`: position of the first query; `keys`: positions of the columns.
    fn softmax(&self, scores: &mut [f32], kv_head: usize, first: usize, keys: Range<usize>) -> Vec<f32> {
        let group = self.heads.heads / self.heads.kv_heads;
        let row = |(row, scores): (usize, &mut [f32])| {
            let position = first + row / group;
            let visible = self.heads.first_key(position) - keys.start..position + 1 - keys.start;
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            let scores = &mut scores[visible];
            if let Some(cap) = self.heads.softcap {
                softcap::cpu(scores, cap);
            }
            if let Some(factor) = self.heads.alibi {
                add_alibi(scores, factor * self.heads.slope(kv_head * group + row % group) as f32);
            }
            softmax_row(scores)
        };
        scores.chunks_exact_mut(keys.len()).enumerate().map(row).collect()
    }
}

/// Adds `slope·(j − i)` to each score. The last score is that of the query's own key, j = i.
fn add_alibi(scores: &mut [f32], slope: f32) {
    let last = scores.len() as i32 - 1;
    vectorised(
        #[inline(always)]
        || {
            for (score, key) in scores.iter_mut().zip(0i32..) {
                *score += slope * (key - last) as f32;
            }
        },
    );
}

/// Replaces the scores by exp(score − maximum) and returns their sum.
fn softmax_row(scores: &mut [f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let max = maximum(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - max);
            }
            sum(scores, scores, |a, _| a) as f32
        },
    )
}
