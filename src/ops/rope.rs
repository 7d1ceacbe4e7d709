//! Rotary position embedding of queries and keys. The shader is `rope`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::{Positions, spread_elements};
use crate::{Error, Result};

/// Which columns of a head are rotated together. If 2·h columns are rotated, they form the pairs 0 ≤ i < h of two columns a and b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// a = i and b = i + h, as in most checkpoints of Hugging Face.
    Halves,
    /// a = 2·i and b = 2·i + 1, as in GPT-J, GLM-4 and Cohere.
    Neighbours,
}

uniform! {
    struct Params of "rope" {
        pairs: u32,
        pairs_per_token: u32,
        pairs_per_head: u32,
        head_dim: u32,
        step: u32,
        distance: u32,
        seq_len: u32,
        first: u32,
        stride: u32,
    }
}

/// Rotates the first columns of every head of every token by the angles of the token's position, in place.
///
/// The first 2·h columns of a head are rotated. For position p and pair i, which has the columns a and b according to `pairs`, with
/// the old values on the right: `x[a] ← x[a]·cos[p, i] − x[b]·sin[p, i]`, `x[b] ← x[b]·cos[p, i] + x[a]·sin[p, i]`.
///
/// `x`: `[tokens, heads·head_dim]`, where token t has position `first + t mod seq_len`. `table`: `[longest, 2·h]`, where row p
/// holds the h cosines and then the h sines of position p. 2·h is at most head_dim. Errors: `Error::Shape` if the shapes do not
/// match, or if a position is not in the table.
pub fn rope(
    rec: &mut Recorder,
    x: &mut Tensor,
    table: &Tensor,
    head_dim: usize,
    pairs: Pairs,
    positions: Positions,
) -> Result<()> {
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
        cpu(x.host_mut(), [width, head_dim], (table.host(), rotated), pairs, positions);
        return Ok(());
    }
    let pairs_per_token = width / head_dim * (rotated / 2);
    let count = tokens * pairs_per_token;
    let (workgroups, stride) = spread_elements(count);
    let (step, distance) = match pairs {
        Pairs::Halves => (1, rotated / 2),
        Pairs::Neighbours => (2, 1),
    };
    let params = Params {
        pairs: count as u32,
        pairs_per_token: pairs_per_token as u32,
        pairs_per_head: (rotated / 2) as u32,
        head_dim: head_dim as u32,
        step,
        distance: distance as u32,
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
        work: 6.0 * count as f64,
    })
}

/// The CPU twin. `rotated`: number of rotated columns per head, 2·h.
fn cpu(
    x: &mut [f32],
    [width, head_dim]: [usize; 2],
    (table, rotated): (&[f32], usize),
    pairs: Pairs,
    positions: Positions,
) {
    x.par_chunks_mut(width).enumerate().with_min_len(64).for_each(|(token, x)| {
        let position = positions.first + token % positions.seq_len;
        let (cos, sin) = table[position * rotated..][..rotated].split_at(rotated / 2);
        for head in x.chunks_exact_mut(head_dim) {
            let head = &mut head[..rotated];
            match pairs {
                Pairs::Halves => {
                    let (first, second) = head.split_at_mut(rotated / 2);
                    for ((a, b), angle) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                        turn(a, b, angle);
                    }
                }
                Pairs::Neighbours => {
                    let (pairs, _) = head.as_chunks_mut::<2>();
                    for ([a, b], angle) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                        turn(a, b, angle);
                    }
                }
            }
        }
    });
}

/// Rotates a pair by an angle, which is given by its cosine and its sine.
#[inline(always)]
fn turn(a: &mut f32, b: &mut f32, (cos, sin): (&f32, &f32)) {
    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
}
