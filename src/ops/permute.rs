//! Conversion between a weight as a checkpoint stores it, `[out, in]`, and the layout of the column loop: the columns, in
//! processing order (act order or the stored order), along the first axis. The shader is `permute`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Buffer, Dispatch, Element, Recorder, Tensor};

/// Number of rows of the weight that are moved together: one cache line of each column.
const STRIP: usize = 16;

/// Computes `out[i, r] = w[r, order[i]]`, `[n, m]`.
///
/// `w`: `[m, n]`; `order`: `[n]`, a permutation. Errors: `Error::Shape` if the shapes do not match.
pub fn to_columns<T: Element>(rec: &mut Recorder, w: &Tensor<T>, order: &Tensor<u32>) -> Result<Tensor<T>> {
    let [m, n] = w.matrix("to_columns")?;
    order.expect_shape("to_columns", &[n])?;
    let mut out = rec.empty(&[n, m])?;
    if rec.is_gpu() {
        permute_gpu(rec, "to_columns", [m, n], w.buffer(), order, out.buffer())?;
        return Ok(out);
    }
    if !out.is_empty() {
        to_columns_cpu(w.host(), order.host(), m, out.host_mut());
    }
    Ok(out)
}

/// Computes `out[r, order[i]] = x[i, r]`, `[m, n]`. This is the inverse of [`to_columns`].
///
/// `x`: `[n, m]`; `order`: `[n]`, a permutation. Errors: `Error::Shape` if the shapes do not match.
pub fn from_columns<T: Element>(rec: &mut Recorder, x: &Tensor<T>, order: &Tensor<u32>) -> Result<Tensor<T>> {
    let [n, m] = x.matrix("from_columns")?;
    order.expect_shape("from_columns", &[n])?;
    let mut out = rec.empty(&[m, n])?;
    if rec.is_gpu() {
        permute_gpu(rec, "from_columns", [m, n], x.buffer(), order, out.buffer())?;
        return Ok(out);
    }
    if !out.is_empty() {
        from_columns_cpu(x.host(), order.host(), m, out.host_mut());
    }
    Ok(out)
}

uniform! {
    struct Params of "permute" {
        m: u32,
        n: u32,
    }
}

/// Dispatches either conversion on a GPU. `[m, n]`: the shape of the weight as stored.
fn permute_gpu(
    rec: &mut Recorder,
    kernel: &'static str,
    [m, n]: [usize; 2],
    source: &Buffer,
    order: &Tensor<u32>,
    destination: &Buffer,
) -> Result<()> {
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&Params { m: m as u32, n: n as u32 }),
        inputs: &[source, order.buffer()],
        outputs: &[destination],
        workgroups: [n.div_ceil(32), m.div_ceil(32), 1],
        work: 4.0 * m as f64 * n as f64,
    })
}

/// The CPU twin of [`to_columns`]. It takes strips of rows, so that the part of `w` that it reads stays in cache for any order.
fn to_columns_cpu<T: Element>(w: &[T], order: &[u32], m: usize, out: &mut [T]) {
    let n = order.len();
    let share = n.div_ceil(rayon::current_num_threads());
    out.par_chunks_mut(share * m).zip(order.par_chunks(share)).for_each(|(out, order)| {
        for strip in (0..m).step_by(STRIP) {
            let end = m.min(strip + STRIP);
            for (out, &column) in out.chunks_mut(m).zip(order) {
                for (r, value) in (strip..end).zip(&mut out[strip..end]) {
                    *value = w[r * n + column as usize];
                }
            }
        }
    });
}

/// The CPU twin of [`from_columns`].
fn from_columns_cpu<T: Element>(x: &[T], order: &[u32], m: usize, out: &mut [T]) {
    let n = order.len();
    out.par_chunks_mut(STRIP * n).enumerate().for_each(|(strip, out)| {
        let rows = strip * STRIP..m.min((strip + 1) * STRIP);
        for (x, &column) in x.chunks(m).zip(order) {
            for (out, value) in out.chunks_mut(n).zip(&x[rows.clone()]) {
                out[column as usize] = *value;
            }
        }
    });
}
