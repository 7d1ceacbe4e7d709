//! The lookup of token embeddings: for each token id, its row of the embedding table. The shader is `embedding`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread;

uniform! {
    struct Params of "embedding" {
        tokens: u32,
        width: u32,
        first_row: u32,
        rows: u32,
        stride: u32,
    }
}

/// Sets `out[t] = table[ids[t] − first_row]` for each token whose id lies in the table. The other rows of `out` are not changed.
///
/// `table`: `[rows, width]`, the vocabulary entries first_row..first_row + rows. A vocabulary may be too large for one buffer.
/// Call this function once for each slab of it. `ids`: `[tokens]`; `out`: `[tokens, width]`. Errors: `Error::Shape` if the
/// shapes do not match.
pub fn gather(rec: &mut Recorder, table: &Tensor, first_row: usize, ids: &Tensor<u32>, out: &mut Tensor) -> Result<()> {
    let [rows, width] = table.matrix("gather")?;
    let [tokens, _] = out.matrix("gather")?;
    out.expect_shape("gather", &[tokens, width])?;
    ids.expect_shape("gather", &[tokens])?;
    if out.is_empty() || table.is_empty() {
        return Ok(());
    }
    if !rec.is_gpu() {
        cpu(table.host(), first_row, ids.host(), width, out.host_mut());
        return Ok(());
    }
    let workgroups = spread(tokens);
    let params = Params {
        tokens: tokens as u32,
        width: width as u32,
        first_row: first_row as u32,
        rows: rows as u32,
        stride: workgroups[0] as u32,
    };
    rec.dispatch(Dispatch {
        kernel: "gather",
        params: bytemuck::bytes_of(&params),
        inputs: &[table.buffer(), ids.buffer()],
        outputs: &[out.buffer()],
        workgroups,
        work: out.len() as f64,
    })
}

/// The CPU twin.
fn cpu(table: &[f32], first_row: usize, ids: &[u32], width: usize, out: &mut [f32]) {
    out.par_chunks_mut(width).zip(ids).with_min_len(64).for_each(|(out, &id)| {
        let row = (id as usize).checked_sub(first_row).and_then(|row| table.chunks_exact(width).nth(row));
        if let Some(row) = row {
            out.copy_from_slice(row);
        }
    });
}
