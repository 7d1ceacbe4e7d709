//! Causal grouped-query attention within each sequence, with an optional sliding window. The shader is `attention`.
//!
//! A sequence may be computed in pieces. The keys and values of its earlier tokens are then in a cache.

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, maximum, sum, vectorised};
use crate::ops::{Positions, spread};
use crate::{Error, Result};

/// The division of the columns of Q, K and V into heads, and the keys that a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key heads, and of value heads. Query head h reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Number of columns per head, 1 to 256.
    pub head_dim: usize,
    /// Number of the most recent keys that a query sees, including its own. `None`: it sees all keys up to its own.
    pub window: Option<usize>,
}

impl Heads {
    /// Position of the first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Checks the shapes. Returns the number of rows of K and V per sequence, which may be larger than its number of tokens.
    /// Errors: `Error::Shape`.
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, positions: Positions) -> Result<usize> {
        let Self { heads, kv_heads, head_dim, window } = *self;
        let ([tokens, _], [rows, _]) = (q.matrix("attention")?, k.matrix("attention")?);
        let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
        let heads_fit = (1..=256).contains(&head_dim) && heads > 0 && divides(kv_heads, heads) && window != Some(0);
        let sequences = tokens.checked_div(positions.seq_len).unwrap_or(0);
        let capacity = rows.checked_div(sequences).unwrap_or(0);
        let whole = divides(positions.seq_len, tokens) && divides(sequences, rows);
        if !heads_fit || !whole || capacity < positions.end() {
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
        tiles: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        seq_len: u32,
        first: u32,
        capacity: u32,
        window: u32,
        scale: f32,
    }
}

/// Computes `out[i] = Σ_j softmax_j(q[i]·k[j] / √head_dim)·v[j]` for each head. Here i and j are positions in one sequence, and
/// the sum runs over the keys `i − window < j ≤ i`.
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
    let tiles = seq_len.div_ceil(64);
    let count = q.shape()[0] / seq_len * heads.heads * tiles;
    let workgroups = spread(count);
    let params = Params {
        count: count as u32,
        stride: workgroups[0] as u32,
        tiles: tiles as u32,
        heads: heads.heads as u32,
        kv_heads: heads.kv_heads as u32,
        head_dim: heads.head_dim as u32,
        seq_len: seq_len as u32,
        first: first as u32,
        capacity: capacity as u32,
        window: heads.window.map_or(positions.end(), |window| window.min(positions.end())) as u32,
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
    };
    rec.dispatch(Dispatch {
        // The smallest variant whose registers hold an output of this head_dim.
        kernel: match heads.head_dim {
            ..=64 => "attention_64",
            65..=128 => "attention_128",
            _ => "attention_256",
        },
        params: bytemuck::bytes_of(&params),
        inputs: &[q.buffer(), k.buffer(), v.buffer()],
        outputs: &[out.buffer()],
        workgroups,
        // On average, a query sees all earlier keys and half of the new ones. A window only reduces this.
        work: 4.0 * q.len() as f64 * (first as f64 + seq_len as f64 / 2.0),
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
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let (width, group) = (heads * head_dim, heads / kv_heads);
        let queries = out.len() / width;
        let first = self.positions.first + row;
        let (first_key, keys) = (self.heads.first_key(first), first + queries);
        let (q_start, k_start) = (sequence * self.positions.seq_len + row, sequence * self.capacity + first_key);
        let span = group * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
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
            let sums = self.softmax(&mut scores, first, first_key, keys);
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

    /// Replaces each row of scores by exp(score − maximum), and by 0 for keys that the query does not see. Returns the sum of
    /// each row. `first`: position of the first query; `first_key..keys`: positions of the columns.
    fn softmax(&self, scores: &mut [f32], first: usize, first_key: usize, keys: usize) -> Vec<f32> {
        let group = self.heads.heads / self.heads.kv_heads;
        let row = |(row, scores): (usize, &mut [f32])| {
            let position = first + row / group;
            let visible = self.heads.first_key(position) - first_key..position + 1 - first_key;
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            softmax_row(&mut scores[visible])
        };
        scores.chunks_exact_mut(keys - first_key).enumerate().map(row).collect()
    }
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
