//! The rows of the embedding table that a sequence of token ids names.

use rayon::prelude::*;

use crate::Result;
use crate::device::Recorder;
use crate::tensor::Tensor;

/// `out[t] = table[ids[t] − first_row]` for the tokens whose id lies in the table; the other rows of `out` stay.
///
/// `table`: `[rows, width]`, the entries from `first_row` on of a vocabulary that may be too large for one buffer: call
/// this once per slab. `ids`: `[tokens]`; `out`: `[tokens, width]`. Errors: `Error::Shape` if they do not fit.
pub fn gather(rec: &mut Recorder, table: &Tensor, first_row: usize, ids: &Tensor<u32>, out: &mut Tensor) -> Result<()> {
    let [_, width] = table.matrix("gather")?;
    let [tokens, _] = out.matrix("gather")?;
    out.expect_shape("gather", &[tokens, width])?;
    ids.expect_shape("gather", &[tokens])?;
    if out.is_empty() || table.is_empty() {
        return Ok(());
    }
    if rec.is_gpu() {
        return Err(super::not_written(rec, "gather"));
    }
    cpu(table.host(), first_row, ids.host(), width, out.host_mut());
    Ok(())
}

fn cpu(table: &[f32], first_row: usize, ids: &[u32], width: usize, out: &mut [f32]) {
    out.par_chunks_mut(width).zip(ids).with_min_len(64).for_each(|(out, &id)| {
        let row = (id as usize).checked_sub(first_row).and_then(|row| table.chunks_exact(width).nth(row));
        if let Some(row) = row {
            out.copy_from_slice(row);
        }
    });
}
