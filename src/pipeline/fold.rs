//! AWQ's scales on their way into the checkpoint: what makes a scaled input is divided by the scales, so that the model computes
//! what it did before and any client can load it.
//!
//! Norms and biases are stored in the type that they had. Their new values are chosen first and the scales follow, so that
//! both fit to the last bit but one. Rows of v and up are quantized before the scales of o and down are known: the scales
//! of their grids are divided, and rounded to f16 again (2⁻¹² of a weight, on average less). The calibration
//! streams keep the values from before this last rounding.

use half::{bf16, f16};

use crate::Result;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::family::Fold;
use crate::stored::{QuantizedLinear, StoredLinear};

/// What a block has ready for the output.
#[derive(Debug, Default, Clone)]
pub struct Finished {
    /// New values of norms and biases, by tensor name.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// Layers, in model order.
    pub linears: Vec<StoredLinear>,
}

/// What makes the input of a group of linear layers, as it is stored.
#[derive(Debug)]
pub struct Producer {
    /// Gains and biases.
    tensors: Vec<Stored>,
    /// The linear layer with a row per channel: its place in [`Finished::linears`], and the least and greatest scale of each row that
    /// leave the scales of its grids normal f16.
    linear: Option<(usize, Vec<[f32; 2]>)>,
}

/// One number per channel.
#[derive(Debug)]
struct Stored {
    name: String,
    dtype: Dtype,
    values: Vec<f32>,
}

impl Producer {
    /// What `fold` names in block `layer`; `None` where its linear layer is not quantized, or lies on no grid.
    pub async fn of(checkpoint: &Checkpoint, layer: usize, fold: &Fold, finished: &Finished) -> Result<Option<Self>> {
        let linear = match &fold.linear {
            None => None,
            Some(path) => {
                let name = path.at(layer);
                let place = finished.linears.iter().position(|linear| linear.name() == name);
                let Some((place, StoredLinear::Codes(codes))) = place.map(|place| (place, &finished.linears[place]))
                else {
                    return Ok(None);
                };
                Some((place, row_bounds(codes)))
            }
        };
        let mut tensors = Vec::new();
        for name in &fold.tensors {
            tensors.push(Stored::read(checkpoint, name.at(layer)).await?);
        }
        Ok(Some(Self { tensors, linear }))
    }

    /// The scales nearest to `wanted` that the stored numbers can be divided by.
    pub fn feasible(&self, wanted: &[f32]) -> Vec<f32> {
        let mut scales = wanted.to_vec();
        if let Some((_, bounds)) = &self.linear {
            scales.iter_mut().zip(bounds).for_each(|(s, [least, greatest])| *s = s.max(*least).min(*greatest));
        }
        for tensor in &self.tensors {
            scales.iter_mut().zip(&tensor.values).for_each(|(s, &value)| *s = feasible(value, *s, tensor.dtype));
        }
        scales
    }

    /// Divides what is stored by `scales`, which must be feasible.
    pub fn fold(&self, scales: &[f32], finished: &mut Finished) {
        if scales.iter().all(|&s| s == 1.0) {
            return;
        }
        for Stored { name, dtype, values } in &self.tensors {
            let divided = values.iter().zip(scales).map(|(value, s)| round_to(value / s, *dtype)).collect();
            finished.tensors.push((name.clone(), divided));
        }
        let linear = self.linear.as_ref().map(|(place, _)| &mut finished.linears[*place]);
        if let Some(StoredLinear::Codes(linear)) = linear {
            let groups = linear.groups();
            for (row, s) in linear.scales.chunks_mut(groups).zip(scales) {
                row.iter_mut().for_each(|scale| *scale = f16::from_f32(scale.to_f32() / s));
            }
        }
    }
}

impl Stored {
    async fn read(checkpoint: &Checkpoint, name: String) -> Result<Self> {
        Ok(Self { dtype: checkpoint.dtype(&name)?, values: checkpoint.read(&name).await?, name })
    }
}

/// Scales of each row between which all quotients of its grids' scales are normal f16. 1 is always among them.
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

/// The scale near `wanted` that `value` divided by it, in its type, is exact for; 1 if the quotient leaves the type.
fn feasible(value: f32, wanted: f32, dtype: Dtype) -> f32 {
    let quotient = round_to(value / wanted, dtype);
    match value / quotient {
        // Nothing to divide.
        _ if value == 0.0 => wanted,
        scale if quotient.is_normal() && scale.is_normal() => scale,
        _ => 1.0,
    }
}

/// `value` in a floating-point type that checkpoints use.
fn round_to(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}
