//! Quantized layers in memory: codes on their grids, or plain numbers.
//!
//! Quantization methods make them, checkpoint formats pack them into tensors, and the engine dequantizes them. Nothing
//! in this file depends on a file format.

use std::collections::HashMap;
use std::ops::Index;

use half::f16;

use crate::error::{Setting, phrase};
use crate::{Error, Result};

/// The form in which a quantization method leaves its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Codes with scales and zero points: [`StoredLinear::Codes`].
    Codes,
    /// A weight of plain numbers: [`StoredLinear::Dense`].
    Dense,
}

/// The quantization grid of a layer. Each row has one scale and zero point per group of consecutive inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerGrid {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; equal to the number of inputs if there is one group per row.
    pub group_size: usize,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
}

/// A quantized linear layer, W ≈ s·(q − z). Each row has one scale s and zero point z per group of `group_size`
/// consecutive inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    /// Module path without `.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; equal to `columns` if there is one group per row.
    pub group_size: usize,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// Codes q, `[rows, columns]`, row-major.
    pub codes: Vec<u8>,
    /// Scales s, `[rows, groups]`, row-major.
    pub scales: Vec<f16>,
    /// Zero points z, `[rows, groups]`, row-major.
    pub zeros: Vec<u8>,
}

/// A quantized layer in the form in which its method left it.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredLinear {
    /// Codes with their scales and zero points.
    Codes(QuantizedLinear),
    /// A weight that lies on no grid, because the method undid a rotation after rounding.
    Dense(DenseLinear),
}

/// The weight of a layer as plain numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseLinear {
    /// Module path without `.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// The weight, `[rows, columns]`, row-major.
    pub weight: Vec<f32>,
}

impl From<QuantizedLinear> for StoredLinear {
    fn from(linear: QuantizedLinear) -> Self {
        Self::Codes(linear)
    }
}

impl StoredLinear {
    /// Module path without `.weight`.
    pub fn name(&self) -> &str {
        match self {
            Self::Codes(linear) => &linear.name,
            Self::Dense(linear) => &linear.name,
        }
    }

    /// Rows (outputs) and columns (inputs).
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Codes(linear) => [linear.rows, linear.columns],
            Self::Dense(linear) => [linear.rows, linear.columns],
        }
    }

    /// Whether the arrays have the sizes that follow from the other fields. All other methods assume this, so layers
    /// from a file must be tested first.
    pub(crate) fn is_whole(&self) -> bool {
        let [rows, columns] = self.shape();
        let weights = rows.checked_mul(columns);
        match self {
            Self::Codes(linear) => {
                let possible = matches!(linear.bits, 2 | 3 | 4 | 8) && linear.group_size > 0 && columns > 0;
                possible
                    && weights == Some(linear.codes.len())
                    && rows.checked_mul(linear.groups()) == Some(linear.scales.len())
                    && linear.scales.len() == linear.zeros.len()
            }
            Self::Dense(linear) => weights == Some(linear.weight.len()),
        }
    }

    /// Checks the sizes of the arrays and the ranges of their values. The group size and the number of bits must be
    /// valid.
    ///
    /// Errors: `Error::Shape` if an array has the wrong size, if a code or zero point does not fit into `bits` bits, or
    /// if a zero point of a symmetric layer is not 2^(bits−1); `Error::NotFinite` if a scale is not finite.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Codes(linear) => linear.check(),
            Self::Dense(linear) if linear.weight.len() == linear.rows * linear.columns => Ok(()),
            Self::Dense(linear) => Err(Error::shape("StoredLinear::check", format!("{}: a part of it", linear.name))),
        }
    }

    /// The quantized weight as numbers, `[rows, columns]`, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Codes(linear) => linear.dequantize(),
            Self::Dense(linear) => linear.weight.clone(),
        }
    }
}

impl QuantizedLinear {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.columns.div_ceil(self.group_size)
    }

    /// The grid on which the codes lie.
    pub fn grid(&self) -> LayerGrid {
        let Self { bits, group_size, symmetric, .. } = *self;
        LayerGrid { bits, group_size, symmetric }
    }

    /// As [`StoredLinear::check`].
    fn check(&self) -> Result<()> {
        let limit = (1u16 << self.bits) - 1;
        let cells = self.rows * self.groups();
        let sizes = (self.codes.len(), self.scales.len(), self.zeros.len());
        let fits = |values: &[u8]| values.iter().all(|&v| u16::from(v) <= limit);
        let problem = if sizes != (self.rows * self.columns, cells, cells) {
            format!("{} × {} in groups of {}, but {sizes:?} parts", self.rows, self.columns, self.group_size)
        } else if !fits(&self.codes) || !fits(&self.zeros) {
            format!("a code or zero point of more than {} bits", self.bits)
        } else if self.symmetric && self.zeros.iter().any(|&z| u16::from(z) != limit / 2 + 1) {
            format!("a symmetric layer whose zero point is not {}", limit / 2 + 1)
        } else if !self.scales.iter().all(|s| s.is_finite()) {
            let remedy = phrase!["use a smaller ", Setting::RoundingDamping, " or more samples"];
            return Err(Error::NotFinite { place: format!("scales of {}", self.name), remedy });
        } else {
            return Ok(());
        };
        Err(Error::shape("StoredLinear::check", format!("{}: {problem}", self.name)))
    }

    /// Dequantizes to s·(q − z), `[rows, columns]`. The result is exact, since the product of an f16 and a whole number
    /// below 256 fits into an f32.
    pub fn dequantize(&self) -> Vec<f32> {
        let groups = self.groups();
        let mut weight = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(self.columns).enumerate() {
            for (group, codes) in codes.chunks(self.group_size).enumerate() {
                let scale = self.scales[row * groups + group].to_f32();
                let zero = f32::from(self.zeros[row * groups + group]);
                weight.extend(codes.iter().map(|&q| scale * (f32::from(q) - zero)));
            }
        }
        weight
    }
}

/// Quantized layers by module path, and changed norms and biases by tensor name. They replace those of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replacements {
    linears: HashMap<String, StoredLinear>,
    tensors: HashMap<String, Vec<f32>>,
}

impl Replacements {
    /// No replacements.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of quantized layers.
    pub fn len(&self) -> usize {
        self.linears.len()
    }

    /// Whether there are no quantized layers.
    pub fn is_empty(&self) -> bool {
        self.linears.is_empty()
    }

    /// The quantized layer with the module path `module`.
    pub fn get(&self, module: &str) -> Option<&StoredLinear> {
        self.linears.get(module)
    }

    /// The quantized layers with their module paths, in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &StoredLinear)> {
        self.linears.iter()
    }

    /// Replaces the layer `module` by `linear`. Returns the previous replacement, if any.
    pub fn insert(&mut self, module: String, linear: StoredLinear) -> Option<StoredLinear> {
        self.linears.insert(module, linear)
    }

    /// The new values of the norm or bias `name`, if it was replaced.
    pub fn tensor(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(Vec::as_slice)
    }

    /// Replaces the values of the norm or bias `name`. Returns the previous replacement, if any.
    pub fn insert_tensor(&mut self, name: String, values: Vec<f32>) -> Option<Vec<f32>> {
        self.tensors.insert(name, values)
    }
}

impl<T: AsRef<str> + ?Sized> Index<&T> for Replacements {
    type Output = StoredLinear;

    /// The quantized layer with the module path `module`. Panics if there is none.
    fn index(&self, module: &T) -> &StoredLinear {
        &self.linears[module.as_ref()]
    }
}
