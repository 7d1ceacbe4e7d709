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
use crate::engine::block::{InputSource, Stage};
use crate::stored::{QuantizedLinear, StoredLinear};

/// What a block has ready for the output.
#[derive(Debug, Default, Clone)]
pub struct Finished {
    /// New values of norms and biases, by tensor name.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// Layers, in model order.
    pub linears: Vec<StoredLinear>,
}

/// What makes the input of a stage, as it is stored.
#[derive(Debug)]
pub struct Producer {
    /// A norm's weight or a linear's bias.
    tensor: Option<Stored>,
    /// The linear with a row per channel: its place in [`Finished::linears`], and the least and greatest scale of each row that
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
    /// What makes the input of `stage` of block `index`; `None` where nothing can be divided.
    pub async fn of(checkpoint: &Checkpoint, index: usize, stage: Stage, finished: &Finished) -> Result<Option<Self>> {
        match stage.source(checkpoint.config()) {
            None => Ok(None),
            Some(InputSource::Norm(norm)) => {
                let tensor = Stored::read(checkpoint, format!("model.layers.{index}.{norm}.weight")).await?;
                Ok(Some(Self { tensor: Some(tensor), linear: None }))
            }
            Some(InputSource::Linear(linear)) => {
                let spec = &checkpoint.config().block_linears(index)[linear];
                let Some(place) = finished.linears.iter().position(|linear| linear.name() == spec.name) else {
                    return Ok(None);
                };
                let tensor =
                    if spec.bias { Some(Stored::read(checkpoint, format!("{}.bias", spec.name)).await?) } else { None };
                let StoredLinear::Codes(linear) = &finished.linears[place] else { return Ok(None) };
                let bounds = row_bounds(linear);
                Ok(Some(Self { tensor, linear: Some((place, bounds)) }))
            }
        }
    }

    /// The scales nearest to `wanted` that the stored numbers can be divided by.
    pub fn feasible(&self, wanted: &[f32]) -> Vec<f32> {
        let mut scales = wanted.to_vec();
        if let Some((_, bounds)) = &self.linear {
            scales.iter_mut().zip(bounds).for_each(|(s, [least, greatest])| *s = s.max(*least).min(*greatest));
        }
        if let Some(tensor) = &self.tensor {
            scales.iter_mut().zip(&tensor.values).for_each(|(s, &value)| *s = feasible(value, *s, tensor.dtype));
        }
        scales
    }

    /// Divides what is stored by `scales`, which must be feasible.
    pub fn fold(&self, scales: &[f32], finished: &mut Finished) {
        if scales.iter().all(|&s| s == 1.0) {
            return;
        }
        if let Some(Stored { name, dtype, values }) = &self.tensor {
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
