//! Layer normalisation. Each token is centred, divided by its standard deviation, multiplied by the gains, and shifted by the
//! bias. The shader is `layer_norm`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread;

uniform! {
    struct Params of "layer_norm" {
        tokens: u32,
        width: u32,
        epsilon: f32,
        stride: u32,
    }
}

/// Computes `out[t, i] = (x[t, i] − m) / √(mean_i (x[t, i] − m)² + ε) · weight[i] + bias[i]` with m = mean_i x[t, i].
///
/// `x` and the result: `[tokens, width]`; `weight`, `bias`: `[width]`; `epsilon`: ε. Errors: `Error::Shape` if the shapes do
/// not match.
pub fn layer_norm(rec: &mut Recorder, x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Result<Tensor> {
    let [tokens, width] = x.matrix("layer_norm")?;
    weight.expect_shape("layer_norm", &[width])?;
    bias.expect_shape("layer_norm", &[width])?;
    let mut out = rec.empty(&[tokens, width])?;
    if rec.is_gpu() {
        let workgroups = spread(tokens);
        let params = Params { tokens: tokens as u32, width: width as u32, epsilon, stride: workgroups[0] as u32 };
        rec.dispatch(Dispatch {
            kernel: "layer_norm",
            params: bytemuck::bytes_of(&params),
            inputs: &[x.buffer(), weight.buffer(), bias.buffer()],
            outputs: &[out.buffer()],
            workgroups,
            work: 7.0 * x.len() as f64,
        })?;
    } else {
        cpu(x.host(), [weight.host(), bias.host()], epsilon, out.host_mut());
    }
    Ok(out)
}

/// The CPU twin.
fn cpu(x: &[f32], [weight, bias]: [&[f32]; 2], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(64).for_each(|(out, x)| {
        let mean = x.iter().sum::<f32>() / width as f32;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / width as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    });
}
