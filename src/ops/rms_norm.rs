//! Root-mean-square normalisation. A model uses it before attention, before the MLP and before the output head. Qwen3 also uses
//! it for each head of the queries and keys. The shader is `rms_norm`.

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread;
use rayon::prelude::*;

uniform! {
    struct Params of "rms_norm" {
        tokens: u32,
        width: u32,
        epsilon: f32,
        stride: u32,
    }
}

/// Computes `out[t, i] = x[t, i] / √(mean_i x[t, i]² + ε) · weight[i]`.
///
/// `x` and the result: `[tokens, width]`; `weight`: `[width]`; `epsilon`: ε. Errors: `Error::Shape` if the shapes do not match.
pub fn rms_norm(rec: &mut Recorder, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let [tokens, width] = x.matrix("rms_norm")?;
    weight.expect_shape("rms_norm", &[width])?;
    let mut out = rec.empty(&[tokens, width])?;
    if rec.is_gpu() {
        let workgroups = spread(tokens);
        let params = Params { tokens: tokens as u32, width: width as u32, epsilon, stride: workgroups[0] as u32 };
        rec.dispatch(Dispatch {
            kernel: "rms_norm",
            params: bytemuck::bytes_of(&params),
            inputs: &[x.buffer(), weight.buffer()],
            outputs: &[out.buffer()],
            workgroups,
            work: 4.0 * x.len() as f64,
        })?;
    } else {
        cpu(x.host(), weight.host(), epsilon, out.host_mut());
    }
    Ok(out)
}

/// The CPU twin.
fn cpu(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(64).for_each(|(out, x)| {
        let mean = x.iter().map(|v| v * v).sum::<f32>() / width as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    });
}
