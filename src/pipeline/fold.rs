//! Folds AWQ's scales of a stop's input into the checkpoint.
//!
//! AWQ divides each channel of the input of a group of linear layers by a scale, and multiplies the columns of their
//! weights by it. The [`Producer`] is the norm or the linear layer that makes this input. Its gains, biases or rows are
//! divided by the scales, so the model computes what it did before, and any client can load the checkpoint. `run` reads
//! the producer before AWQ searches for scales, and folds the scales when the group is done.
//!
//! Norms and biases keep the type in which they are stored. Their new values are chosen first, and the scales are
//! derived from them, so that both agree to the last bit but one. A norm with gains and a bias has one scale for both:
//! the gains agree, and the bias is rounded to its type. A linear layer that makes an input (v for o, up for
//! down) is already quantized when the scales are known. The scales of its grids are then divided and rounded to f16
//! again. This changes a weight by at most 2⁻¹¹ of its value, and by less than 2⁻¹² on average. The calibration streams
//! use the values from before this last rounding.

use half::{bf16, f16};

use crate::Result;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::family::Fold;
use crate::stored::{QuantizedLinear, StoredLinear};

/// The results of a block that are ready for the output.
#[derive(Debug, Default, Clone)]
pub struct BlockResults {
    /// New values of norms and biases, with the names of the tensors.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// The quantized layers, in model order.
    pub linears: Vec<StoredLinear>,
}

/// The stored tensors that make the input of a group of linear layers.
#[derive(Debug)]
pub struct Producer {
    /// Gains and biases.
    tensors: Vec<StoredVector>,
    /// The linear layer that makes the input, with one row per channel of the input: its index in
    /// [`BlockResults::linears`], and for each row the least and the greatest scale by which the scales of its grids
    /// can be divided and stay normal f16 numbers.
    linear: Option<(usize, Vec<[f32; 2]>)>,
}

/// A stored tensor with one number per channel.
#[derive(Debug)]
struct StoredVector {
    name: String,
    dtype: Dtype,
    values: Vec<f32>,
}

impl Producer {
    /// Reads the tensors that `fold` names in block `layer`. Returns `None` if the linear layer that makes the input is
    /// not quantized, or if it lies on no grid.
    ///
    /// Errors: those of reading the checkpoint.
    pub async fn read(
        checkpoint: &Checkpoint,
        layer: usize,
        fold: &Fold,
        results: &BlockResults,
    ) -> Result<Option<Self>> {
        let linear = match &fold.linear {
            None => None,
            Some(path) => {
                let name = path.at(layer);
                let place = results.linears.iter().position(|linear| linear.name() == name);
                let Some((place, StoredLinear::Codes(codes))) = place.map(|place| (place, &results.linears[place]))
                else {
                    return Ok(None);
                };
                Some((place, row_bounds(codes)))
            }
        };
        let mut tensors = Vec::new();
        for name in &fold.tensors {
            tensors.push(StoredVector::read(checkpoint, name.at(layer)).await?);
        }
        Ok(Some(Self { tensors, linear }))
    }

    /// Returns the scales nearest to `wanted` by which the stored numbers can be divided. One scale per channel.
    pub fn feasible(&self, wanted: &[f32]) -> Vec<f32> {
        let mut scales = wanted.to_vec();
        if let Some((_, bounds)) = &self.linear {
            scales.iter_mut().zip(bounds).for_each(|(s, [least, greatest])| *s = s.max(*least).min(*greatest));
        }
        // The gains come last, so that the scales are exact for them.
        for tensor in self.tensors.iter().rev() {
            scales.iter_mut().zip(&tensor.values).for_each(|(s, &value)| *s = exact_scale(value, *s, tensor.dtype));
        }
        scales
    }

    /// Divides the stored numbers by `scales` and puts the quotients into `results`. `scales` must come from
    /// [`Producer::feasible`].
    pub fn fold(&self, scales: &[f32], results: &mut BlockResults) {
        if scales.iter().all(|&s| s == 1.0) {
            return;
        }
        for StoredVector { name, dtype, values } in &self.tensors {
            let divided = values.iter().zip(scales).map(|(value, s)| round_to(value / s, *dtype)).collect();
            results.tensors.push((name.clone(), divided));
        }
        let linear = self.linear.as_ref().map(|(place, _)| &mut results.linears[*place]);
        if let Some(StoredLinear::Codes(linear)) = linear {
            let groups = linear.groups();
            for (row, s) in linear.scales.chunks_mut(groups).zip(scales) {
                row.iter_mut().for_each(|scale| *scale = f16::from_f32(scale.to_f32() / s));
            }
        }
    }
}

impl StoredVector {
    /// Reads the tensor `name` with the type in which it is stored.
    async fn read(checkpoint: &Checkpoint, name: String) -> Result<Self> {
        Ok(Self { dtype: checkpoint.dtype(&name)?, values: checkpoint.read(&name).await?, name })
    }
}

/// For each row, the least and the greatest divisor with which all quotients of the scales of its grids are normal f16
/// numbers. 1 always lies between them.
fn row_bounds(linear: &QuantizedLinear) -> Vec<[f32; 2]> {
    let smallest_normal = f16::MIN_POSITIVE.to_f32();
    let rows = linear.scales.chunks(linear.groups());
    rows.map(|scales| {
        let (low, high) = scales
            .iter()
            .map(|scale| scale.to_f32())
            .fold((f32::INFINITY, 0.0f32), |(low, high), scale| (low.min(scale), high.max(scale)));
        [high / f16::MAX.to_f32(), (low / smallest_normal).max(1.0)]
    })
    .collect()
}

/// The scale near `wanted` for which `value`/scale is exact in `dtype`. Returns 1 if the quotient or the scale is not a
/// normal number.
fn exact_scale(value: f32, wanted: f32, dtype: Dtype) -> f32 {
    let quotient = round_to(value / wanted, dtype);
    match value / quotient {
        // 0 stays 0 under any scale.
        _ if value == 0.0 => wanted,
        scale if quotient.is_normal() && scale.is_normal() => scale,
        _ => 1.0,
    }
}

/// Rounds `value` to a floating-point type that checkpoints use.
fn round_to(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}
