//! Quantized layers as they are kept in memory: codes on their grids, or plain numbers.
//!
//! Methods make them, checkpoints pack them, and the engine dequantizes them. Nothing here knows a file format.

use std::collections::HashMap;
use std::ops::Index;

use half::f16;

use crate::error::{Setting, phrase};
use crate::{Error, Result};

/// In which form a method leaves the layers that it quantizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// [`StoredLinear::Codes`].
    Codes,
    /// [`StoredLinear::Dense`].
    Dense,
}

/// The grids of a layer, one per row and group of consecutive inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerGrid {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; equal to the layer's inputs for one group per row.
    pub group_size: usize,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
}

/// A quantized linear layer: W ≈ s·(q − z), with one s and z per row and group of `group_size` consecutive inputs.
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
    /// Inputs per group; equal to `columns` for one group per row.
    pub group_size: usize,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// q, `[rows, columns]`, row-major.
    pub codes: Vec<u8>,
    /// s, `[rows, groups]`, row-major.
    pub scales: Vec<f16>,
    /// z, `[rows, groups]`, row-major.
    pub zeros: Vec<u8>,
}

/// A layer that was quantized, in one of the forms in which methods leave it.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredLinear {
    /// Codes on grids of its own.
    Codes(QuantizedLinear),
    /// A weight that lies on no grid, because a rotation was undone after rounding.
    Dense(DenseLinear),
}

/// A weight as plain numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseLinear {
    /// Module path without `.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// `[rows, columns]`, row-major.
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

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Codes(linear) => [linear.rows, linear.columns],
            Self::Dense(linear) => [linear.rows, linear.columns],
        }
    }

    /// Whether the arrays have the sizes that the other fields promise, without which nothing here may be called.
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

    /// Whether the parts have the sizes and ranges that the fields promise.
    ///
    /// Errors: `Error::Shape` if a part has another size, a code or zero point needs more than `bits`, or a symmetric layer has
    /// another zero point than 2^(bits−1); `Error::NotFinite` if a scale is not finite.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Codes(linear) => linear.check(),
            Self::Dense(linear) if linear.weight.len() == linear.rows * linear.columns => Ok(()),
            Self::Dense(linear) => Err(Error::shape("StoredLinear::check", format!("{}: a part of it", linear.name))),
        }
    }

    /// The weight that the layer now has, `[rows, columns]`.
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

    /// The grids that the codes lie on.
    pub fn grid(&self) -> LayerGrid {
        let Self { bits, group_size, symmetric, .. } = *self;
        LayerGrid { bits, group_size, symmetric }
    }

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

    /// s·(q − z) as `[rows, columns]`, exact: the product of an f16 and a whole number below 256 fits into an f32.
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

/// Quantized layers by module path, and other tensors by name, standing in for those of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replacements {
    linears: HashMap<String, StoredLinear>,
    tensors: HashMap<String, Vec<f32>>,
}

impl Replacements {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.linears.len()
    }

    /// Whether there is no layer.
    pub fn is_empty(&self) -> bool {
        self.linears.is_empty()
    }

    /// The layer with that module path.
    pub fn get(&self, module: &str) -> Option<&StoredLinear> {
        self.linears.get(module)
    }

    /// The layers with their module paths, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &StoredLinear)> {
        self.linears.iter()
    }

    /// Puts `linear` in the place of the layer `module`. Returns what stood there.
    pub fn insert(&mut self, module: String, linear: StoredLinear) -> Option<StoredLinear> {
        self.linears.insert(module, linear)
    }

    /// The values of the norm or bias of that name.
    pub fn tensor(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(Vec::as_slice)
    }

    /// Puts `values` in the place of the norm or bias `name`. Returns what stood there.
    pub fn insert_tensor(&mut self, name: String, values: Vec<f32>) -> Option<Vec<f32>> {
        self.tensors.insert(name, values)
    }
}

impl<T: AsRef<str> + ?Sized> Index<&T> for Replacements {
    type Output = StoredLinear;

    /// The layer with that module path. Panics if there is none.
    fn index(&self, module: &T) -> &StoredLinear {
        &self.linears[module.as_ref()]
    }
}
