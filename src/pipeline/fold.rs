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
use crate::family::{Fold, Gains};
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
    /// [`BlockResults::linears`], and for each channel the least and the greatest scale by which the scales of the
    /// row's grids can be divided and stay normal f16 numbers.
    linear: Option<(usize, Vec<[f32; 2]>)>,
    /// For each channel of the input, its index in the tensors and its row in the linear layer.
    rows: Vec<usize>,
}

/// A stored tensor with one number per channel, and perhaps others.
#[derive(Debug)]
struct StoredVector {
    name: String,
    dtype: Dtype,
    values: Vec<f32>,
    /// What the model adds to a stored number before it uses it: 1 for the gains 1 + w.
    offset: f32,
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
                let bounds = row_bounds(codes);
                Some((place, fold.rows.iter().map(|&row| bounds[row]).collect()))
            }
        };
        let mut tensors = Vec::new();
        for (index, name) in fold.tensors.iter().enumerate() {
            let offset = if index == 0 && fold.gains == Gains::PlusOne { 1.0 } else { 0.0 };
            tensors.push(StoredVector::read(checkpoint, name.at(layer), offset).await?);
        }
        Ok(Some(Self { tensors, linear, rows: fold.rows.clone() }))
    }

    /// Returns the scales nearest to `wanted` by which the stored numbers can be divided. One scale per channel.
    pub fn feasible(&self, wanted: &[f32]) -> Vec<f32> {
        let mut scales = wanted.to_vec();
        if let Some((_, bounds)) = &self.linear {
            scales.iter_mut().zip(bounds).for_each(|(s, [least, greatest])| *s = s.max(*least).min(*greatest));
        }
        // The gains come last, so that the scales are exact for them.
        for tensor in self.tensors.iter().rev() {
            scales.iter_mut().zip(&self.rows).for_each(|(s, &row)| *s = tensor.exact_scale(row, *s));
        }
        scales
    }

    /// Divides the stored numbers by `scales` and puts the quotients into `results`. `scales` must come from
    /// [`Producer::feasible`].
    pub fn fold(&self, scales: &[f32], results: &mut BlockResults) {
        if scales.iter().all(|&s| s == 1.0) {
            return;
        }
        for tensor in &self.tensors {
            let mut values = tensor.values.clone();
            for (&row, &s) in self.rows.iter().zip(scales) {
                values[row] = tensor.divided(row, s);
            }
            results.tensors.push((tensor.name.clone(), values));
        }
        let linear = self.linear.as_ref().map(|(place, _)| &mut results.linears[*place]);
        if let Some(StoredLinear::Codes(linear)) = linear {
            for (&row, &s) in self.rows.iter().zip(scales) {
                linear.divide_row(row, s);
            }
        }
    }
}

impl StoredVector {
    /// Reads the tensor `name` with the type in which it is stored.
    async fn read(checkpoint: &Checkpoint, name: String, offset: f32) -> Result<Self> {
        Ok(Self { dtype: checkpoint.dtype(&name)?, values: checkpoint.read(&name).await?, name, offset })
    }

    /// The number to store at `index` so that the model uses its old number divided by `scale`.
    fn divided(&self, index: usize, scale: f32) -> f32 {
        round_to((self.offset + self.values[index]) / scale - self.offset, self.dtype)
    }

    /// The scale near `wanted` by which the number at `index` can be divided without rounding. Returns 1 if the
    /// quotient or the scale is not a normal number.
    fn exact_scale(&self, index: usize, wanted: f32) -> f32 {
        let value = self.offset + self.values[index];
        let quotient = self.offset + self.divided(index, wanted);
        match value / quotient {
            // 0 stays 0 under any scale.
            _ if value == 0.0 => wanted,
            scale if quotient.is_normal() && scale.is_normal() => scale,
            _ => 1.0,
        }
    }
}

/// For each row, the least and the greatest divisor with which all quotients of its stored scales or units are normal f16
/// numbers. 1 always lies between them.
fn row_bounds(linear: &QuantizedLinear) -> Vec<[f32; 2]> {
    let smallest_normal = f16::MIN_POSITIVE.to_f32();
    let bounds = |row: usize| {
        let sizes = linear.divisible(row).iter().map(|number| number.abs());
        let (low, high) = sizes.fold((f32::INFINITY, 0.0f32), |(low, high), size| (low.min(size), high.max(size)));
        [high / f16::MAX.to_f32(), (low / smallest_normal).max(1.0)]
    };
    (0..linear.rows).map(bounds).collect()
}

/// Rounds `value` to a floating-point type that checkpoints use.
fn round_to(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}
