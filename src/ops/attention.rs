//! Causal grouped-query attention inside each sequence, with an optional sliding window.
//!
//! A sequence may come in pieces: keys and values then lie in a cache, which holds those of earlier tokens too.

use faer::linalg::matmul::matmul as product;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, maximum, sum, vectorised};
use crate::ops::{Positions, spread};
use crate::{Error, Result};

/// How the columns of Q, K and V divide into heads, and which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Columns per head, at most 256.
    pub head_dim: usize,
    /// How many of the last keys, its own among them, a query sees; all if `None`.
    pub window: Option<usize>,
}

impl Heads {
    /// The first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Rows of K and V that belong to each sequence; its tokens may be fewer.
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

/// `out[i] = Σ_j softmax_j(q[i]·k[j] / √head_dim)·v[j]` per head, over the keys `i − window < j ≤ i` of i's sequence,
/// where i and j are positions.
///
/// `q`: `[sequences·seq_len, heads·head_dim]`, the tokens that `positions` says. `k`, `v`:
/// `[sequences·capacity, kv_heads·head_dim]`: those of every position of a sequence up to the last of `q`, and then,
/// unread, whatever a cache has room for. Returns the shape of `q`. Errors: `Error::Shape` if they do not fit.
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
        // The variant that has registers for this head_dim.
        kernel: match heads.head_dim {
            ..=64 => "attention_64",
            65..=128 => "attention_128",
            _ => "attention_256",
        },
        params: bytemuck::bytes_of(&params),
        inputs: &[q.buffer(), k.buffer(), v.buffer()],
        outputs: &[out.buffer()],
        workgroups,
        // All earlier keys and half of the new ones on average; a window only makes it less.
        work: 4.0 * q.len() as f64 * (first as f64 + seq_len as f64 / 2.0),
    })?;
    Ok(out)
}

fn matrix(tensor: &Tensor) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(tensor.host(), tensor.shape()[0], tensor.shape()[1])
}

/// Queries per task: enough for the products to be fast, few enough that little is computed beyond the diagonal.
const QUERIES: usize = 64;

/// The twin: one task per block of queries, one pair of products per key head in it. The query heads that share a key
/// head are stacked, so that its keys and values are packed once for all of them.
struct Twin<'a> {
    q: &'a [f32],
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
    heads: Heads,
    positions: Positions,
    capacity: usize,
}

impl<'a> Twin<'a> {
    fn run(&self, out: &mut [f32]) {
        let width = self.heads.heads * self.heads.head_dim;
        out.par_chunks_mut(self.positions.seq_len * width).enumerate().for_each(|(sequence, out)| {
            out.par_chunks_mut(QUERIES * width).enumerate().for_each(|(block, out)| {
                self.block(sequence, block * QUERIES, out);
            });
        });
    }

    /// Rows `row..` of a sequence's queries, as many as `out` has.
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

    /// Turns each row of scores into exp(score − maximum), 0 for keys that it does not see; returns the rows' sums.
    /// `first`: position of the first row.
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
