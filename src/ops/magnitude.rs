//! The magnitude of each input channel: the sum of absolute values over tokens. AWQ derives the scales of its inputs from it. The
//! shader is `magnitude`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};

/// Number of tokens of one dispatch, and of one running sum.
const TOKENS: usize = 2048;
/// Number of channels that one workgroup handles.
const CHANNELS: usize = 32;

uniform! {
    struct Params of "magnitude" {
        n: u32,
        first: u32,
        last: u32,
    }
}

/// `sums[i] += Σ_t |x[t, i]|`. `x`: `[tokens, n]`; `sums`: `[n]`. Errors: `Error::Shape` if the shapes do not match.
pub fn accumulate(rec: &mut Recorder, x: &Tensor, sums: &mut Tensor) -> Result<()> {
    let [tokens, n] = x.matrix("magnitude")?;
    sums.expect_shape("magnitude", &[n])?;
    if !rec.is_gpu() {
        for tokens in x.host().chunks((TOKENS * n).max(1)) {
            let partial = tokens.par_chunks(n * 64).map(|tokens| partial_sums(tokens, n));
            let partial = partial.reduce(|| vec![0.0; n], |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
            sums.host_mut().iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
        }
        return Ok(());
    }
    for first in (0..tokens).step_by(TOKENS) {
        let last = tokens.min(first + TOKENS);
        let params = Params { n: n as u32, first: first as u32, last: last as u32 };
        rec.dispatch(Dispatch {
            kernel: "magnitude",
            params: bytemuck::bytes_of(&params),
            inputs: &[x.buffer()],
            outputs: &[sums.buffer()],
            workgroups: [n.div_ceil(CHANNELS), 1, 1],
            work: 2.0 * (last - first) as f64 * n as f64,
        })?;
    }
    Ok(())
}

/// Returns the sums of absolute values over some tokens, n elements.
fn partial_sums(tokens: &[f32], n: usize) -> Vec<f32> {
    let mut sums = vec![0.0; n];
    for token in tokens.chunks(n) {
        sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += x.abs());
    }
    sums
}
