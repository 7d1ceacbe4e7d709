//! Rotary position embedding of queries and keys, in the half-split form of Hugging Face checkpoints. The shader is `rope`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::{Positions, spread_elements};
use crate::{Error, Result};

uniform! {
    struct Params of "rope" {
        pairs: u32,
        pairs_per_token: u32,
        pairs_per_head: u32,
        head_dim: u32,
        seq_len: u32,
        first: u32,
        stride: u32,
    }
}

/// Rotates the first columns of every head of every token by the angles of the token's position, in place.
///
/// The first 2·h columns of a head are rotated. For position p and 0 ≤ i < h, with the old values on the right:
/// `x[i] ← x[i]·cos[p, i] − x[i + h]·sin[p, i]`, `x[i + h] ← x[i + h]·cos[p, i] + x[i]·sin[p, i]`.
///
/// `x`: `[tokens, heads·head_dim]`, where token t has position `first + t mod seq_len`. `table`: `[longest, 2·h]`, where row p
/// holds the h cosines and then the h sines of position p. 2·h is at most head_dim. Errors: `Error::Shape` if the shapes do not
/// match, or if a position is not in the table.
pub fn rope(rec: &mut Recorder, x: &mut Tensor, table: &Tensor, head_dim: usize, positions: Positions) -> Result<()> {
    let [tokens, width] = x.matrix("rope")?;
    let [longest, rotated] = table.matrix("rope")?;
    let fits = (1..=head_dim).contains(&rotated) && rotated.is_multiple_of(2) && width.is_multiple_of(head_dim);
    let inside = positions.seq_len > 0 && positions.end() <= longest;
    if !fits || !inside {
        let (x, table) = (x.shape(), table.shape());
        let detail = format!("x {x:?}, table {table:?}, head_dim {head_dim}, {positions:?}");
        return Err(Error::shape("rope", detail));
    }
    if x.is_empty() {
        return Ok(());
    }
    if !rec.is_gpu() {
        cpu(x.host_mut(), [width, head_dim], (table.host(), rotated), positions);
        return Ok(());
    }
    let pairs_per_token = width / head_dim * (rotated / 2);
    let pairs = tokens * pairs_per_token;
    let (workgroups, stride) = spread_elements(pairs);
    let params = Params {
        pairs: pairs as u32,
        pairs_per_token: pairs_per_token as u32,
        pairs_per_head: (rotated / 2) as u32,
        head_dim: head_dim as u32,
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
        work: 6.0 * pairs as f64,
    })
}

/// The CPU twin. `rotated`: number of rotated columns per head, 2·h.
fn cpu(x: &mut [f32], [width, head_dim]: [usize; 2], (table, rotated): (&[f32], usize), positions: Positions) {
    x.par_chunks_mut(width).enumerate().with_min_len(64).for_each(|(token, x)| {
        let position = positions.first + token % positions.seq_len;
        let (cos, sin) = table[position * rotated..][..rotated].split_at(rotated / 2);
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head[..rotated].split_at_mut(rotated / 2);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}
