//! The activations of the MLP, alone or as a gate of another projection. The shader is `activate`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{exp, vectorised};
use crate::ops::spread_elements;

/// A function of one number. The error of f(x) on any device is below 10⁻⁶·max(1, |x|), or below 10⁻⁶·max(1, x²) for the square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), where Φ(x) = (1 + erf(x/√2)) / 2 is the distribution function of the standard normal distribution.
    Gelu,
    /// x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), an approximation of [`Activation::Gelu`] that models are trained with.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
    /// σ(x) = 1 / (1 + e⁻ˣ).
    Sigmoid,
}

impl Activation {
    /// The kernel of f(x), and that of f(x)·up.
    fn kernels(self) -> [&'static str; 2] {
        match self {
            Self::Silu => ["silu", "silu_gate"],
            Self::Gelu => ["gelu", "gelu_gate"],
            Self::GeluTanh => ["gelu_tanh", "gelu_tanh_gate"],
            Self::Relu => ["relu", "relu_gate"],
            Self::ReluSquared => ["relu_squared", "relu_squared_gate"],
            Self::Sigmoid => ["sigmoid", "sigmoid_gate"],
        }
    }
}

uniform! {
    struct Params of "activate" {
        count: u32,
        stride: u32,
    }
}

/// Computes `out[t, i] = f(x[t, i])` for the function f that `activation` names.
///
/// `x` and the result: `[tokens, width]`. Errors: `Error::Shape` if `x` is no matrix.
pub fn activate(rec: &mut Recorder, activation: Activation, x: &Tensor) -> Result<Tensor> {
    x.matrix("activate")?;
    let mut out = rec.empty(x.shape())?;
    if rec.is_gpu() {
        let [kernel, _] = activation.kernels();
        dispatch(rec, kernel, &[x], &out)?;
    } else {
        cpu(activation, x.host(), None, out.host_mut());
    }
    Ok(out)
}

/// Computes `out[t, i] = f(gate[t, i])·up[t, i]` for the function f that `activation` names.
///
/// `gate`, `up` and the result: `[tokens, width]`. Errors: `Error::Shape` if the shapes differ.
pub fn gate(rec: &mut Recorder, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.matrix("gate")?;
    up.expect_shape("gate", gate.shape())?;
    let mut out = rec.empty(gate.shape())?;
    if rec.is_gpu() {
        let [_, kernel] = activation.kernels();
        dispatch(rec, kernel, &[gate, up], &out)?;
    } else {
        cpu(activation, gate.host(), Some(up.host()), out.host_mut());
    }
    Ok(out)
}

/// Dispatches one invocation per element of `out`.
fn dispatch(rec: &mut Recorder, kernel: &'static str, inputs: &[&Tensor], out: &Tensor) -> Result<()> {
    let (workgroups, stride) = spread_elements(out.len());
    let params = Params { count: out.len() as u32, stride };
    let inputs: Vec<_> = inputs.iter().map(|input| input.buffer()).collect();
    rec.dispatch(Dispatch {
        kernel,
        params: bytemuck::bytes_of(&params),
        inputs: &inputs,
        outputs: &[out.buffer()],
        workgroups,
        work: 10.0 * out.len() as f64,
    })
}

/// The CPU twin. Each function is compiled into a loop of its own. `up`: the factors of the results, if there are any.
fn cpu(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    match activation {
        Activation::Silu => each(x, up, out, silu),
        Activation::Gelu => each(x, up, out, gelu),
        Activation::GeluTanh => each(x, up, out, gelu_tanh),
        Activation::Relu => each(x, up, out, relu),
        Activation::ReluSquared => each(x, up, out, relu_squared),
        Activation::Sigmoid => each(x, up, out, sigmoid),
    }
}

/// Writes f(x), or f(x)·up, to `out`.
fn each(x: &[f32], up: Option<&[f32]>, out: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    const CHUNK: usize = 1 << 14;
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (out, x))| {
        vectorised(
            #[inline(always)]
            || match up {
                Some(up) => {
                    for ((out, &x), up) in out.iter_mut().zip(x).zip(&up[chunk * CHUNK..]) {
                        *out = f(x) * up;
                    }
                }
                None => {
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = f(x);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x·Φ(x). The polynomial is number 26.2.17 of Abramowitz and Stegun, which has an error below 7.5·10⁻⁸ in Φ.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.231_641_9 * size);
    let series = t * (0.127_414_8 + t * (-0.142_248_36 + t * (0.710_706_9 + t * (-0.726_576 + t * 0.530_702_7))));
    let tail = series * exp(-0.5 * size * size);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// The two terms of the definition are one quotient, because (1 + tanh u) / 2 = σ(2u). The factor is 2·√(2/π).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    x / (1.0 + exp(-1.595_769 * x * (1.0 + 0.044_715 * x * x)))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_squared(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x * x }
}
