//! Rotary position embedding of queries and keys, in the half-split form of Hugging Face checkpoints.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder};
use crate::ops::{Positions, spread_elements};
use crate::tensor::Tensor;
use crate::{Error, Result};

uniform! {
    struct Params of "rope" {
        pairs: u32,
        pairs_per_token: u32,
        pairs_per_head: u32,
        seq_len: u32,
        first: u32,
        stride: u32,
    }
}

/// Rotates every head of every token by the angles of the token's position, in place.
///
/// With h = head_dim / 2, position p and 0 ≤ i < h:
/// `x[i] ← x[i]·cos[p, i] − x[i + h]·sin[p, i]`, `x[i + h] ← x[i + h]·cos[p, i] + x[i]·sin[p, i]`.
///
/// `x`: `[tokens, heads·head_dim]`, where token t stands at position `first + t mod seq_len`. `table`:
/// `[longest, head_dim]`, each row the h cosines and then the h sines of a position. Errors: `Error::Shape` if they do
/// not fit.
pub fn rope(rec: &mut Recorder, x: &mut Tensor, table: &Tensor, head_dim: usize, positions: Positions) -> Result<()> {
    let [_, width] = x.matrix("rope")?;
    let [longest, columns] = table.matrix("rope")?;
    let even = head_dim > 0 && head_dim.is_multiple_of(2);
    let inside = positions.seq_len > 0 && positions.end() <= longest;
    if !even || !width.is_multiple_of(head_dim) || columns != head_dim || !inside {
        let (x, table) = (x.shape(), table.shape());
        let detail = format!("x {x:?}, table {table:?}, head_dim {head_dim}, {positions:?}");
        return Err(Error::shape("rope", detail));
    }
    if x.is_empty() {
        return Ok(());
    }
    if !rec.is_gpu() {
        cpu(x.host_mut(), width, table.host(), head_dim, positions);
        return Ok(());
    }
    let pairs = x.len() / 2;
    let (workgroups, stride) = spread_elements(pairs);
    let params = Params {
        pairs: pairs as u32,
        pairs_per_token: (width / 2) as u32,
        pairs_per_head: (head_dim / 2) as u32,
        seq_len: positions.seq_len as u32,
        first: positions.first as u32,
        stride,
    };
    rec.dispatch(Dispatch {
        kernel: "rope",
        params: bytemuck::bytes_of(&params),
        inputs: &[table.buffer()],
        outputs: &[x.buffer()],
        workgroups,
        work: 3.0 * x.len() as f64,
    })
}

fn cpu(x: &mut [f32], width: usize, table: &[f32], head_dim: usize, positions: Positions) {
    x.par_chunks_mut(width).enumerate().with_min_len(64).for_each(|(token, x)| {
        let position = positions.first + token % positions.seq_len;
        let (cos, sin) = table[position * head_dim..][..head_dim].split_at(head_dim / 2);
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(head_dim / 2);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}
