//! The gated activation of the MLP: SiLU of the gate projection, times the up projection. The shader is `silu_mul`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, vectorised};
use crate::ops::spread_elements;

uniform! {
    struct Params of "silu_mul" {
        count: u32,
        stride: u32,
    }
}

/// Computes `out[t, i] = gate[t, i]·σ(gate[t, i])·up[t, i]` with σ(x) = 1 / (1 + e⁻ˣ).
///
/// `gate`, `up` and the result: `[tokens, width]`. Errors: `Error::Shape` if the shapes differ.
pub fn silu_mul(rec: &mut Recorder, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.matrix("silu_mul")?;
    up.expect_shape("silu_mul", gate.shape())?;
    let mut out = rec.empty(gate.shape())?;
    if rec.is_gpu() {
        let (workgroups, stride) = spread_elements(gate.len());
        let params = Params { count: gate.len() as u32, stride };
        rec.dispatch(Dispatch {
            kernel: "silu_mul",
            params: bytemuck::bytes_of(&params),
            inputs: &[gate.buffer(), up.buffer()],
            outputs: &[out.buffer()],
            workgroups,
            work: 10.0 * gate.len() as f64,
        })?;
    } else {
        cpu(gate.host(), up.host(), out.host_mut());
    }
    Ok(out)
}

/// The CPU twin.
fn cpu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    const CHUNK: usize = 1 << 14;
    out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((out, gate), up)| {
        vectorised(
            #[inline(always)]
            || {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exp(-gate)) * up;
                }
            },
        );
    });
}
