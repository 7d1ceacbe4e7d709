//! Quantized layers in memory: codes on their grids, or plain numbers.
//!
//! Quantization methods make them, checkpoint formats pack them into tensors, and the engine dequantizes them. Nothing
//! in this file depends on a file format.

use std::collections::HashMap;
use std::ops::Index;

use half::f16;

use crate::error::{Setting, phrase};
use crate::ops::grid::{GridSpec, ScaleType, Steps, Zero};
use crate::{Error, Result};

/// The form in which a quantization method leaves its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Codes with scales and zero points: [`StoredLinear::Codes`].
    Codes,
    /// A weight of plain numbers: [`StoredLinear::Dense`].
    Dense,
}

/// A quantized linear layer on its grid: W ≈ s·(q − z), or W ≈ s·q + o.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    /// Module path without `.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// The grid.
    pub grid: GridSpec,
    /// Codes q, `[rows, columns]`, row-major.
    pub codes: Vec<u8>,
    /// Scales s, `[rows, groups]`, row-major, as they are stored.
    pub scales: Vec<f32>,
    /// Zero points z or offsets o, `[rows, groups]`, row-major, as they are stored.
    pub zeros: Vec<f32>,
    /// The units of which scales are whole numbers, `[rows, units]`, and then those of offsets, if there are offsets. Empty
    /// where scales share no units.
    pub units: Vec<f32>,
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
                linear.grid.is_possible()
                    && columns > 0
                    && weights == Some(linear.codes.len())
                    && rows.checked_mul(linear.groups()) == Some(linear.scales.len())
                    && linear.scales.len() == linear.zeros.len()
                    && rows.checked_mul(linear.unit_columns()) == Some(linear.units.len())
            }
            Self::Dense(linear) => weights == Some(linear.weight.len()),
        }
    }

    /// Checks the sizes of the arrays and the ranges of their values. The group size and the number of bits must be
    /// valid.
    ///
    /// Errors: `Error::Shape` if an array has the wrong size, if a code or zero point does not fit into its bits, if a
    /// fixed zero point is another one, or if a number is not of the type in which it is stored; `Error::NotFinite` if a
    /// scale or an offset is not finite.
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
        self.columns.div_ceil(self.grid.group_size)
    }

    /// Units per row, those of offsets included.
    fn unit_columns(&self) -> usize {
        let units = self.grid.shared_groups().map_or(0, |shared| self.groups().div_ceil(shared.max(1)));
        if self.grid.has_offsets() { 2 * units } else { units }
    }

    /// As [`StoredLinear::check`].
    fn check(&self) -> Result<()> {
        let Self { rows, columns, grid, ref scales, ref zeros, ref units, .. } = *self;
        let cells = rows * self.groups();
        let sizes = (self.codes.len(), scales.len(), zeros.len(), units.len());
        let limit = grid.top();
        let of_type = |numbers: &[f32]| numbers.iter().all(|&x| grid.scale.own().round(x) == x);
        let possible_zeros = match grid.zero {
            Zero::Fixed(code) => zeros.iter().all(|&z| z == code as f32),
            Zero::Code => zeros.iter().all(|&z| z.fract() == 0.0 && (0.0..=limit).contains(&z)),
            Zero::Offset(steps) => zeros.iter().all(|&o| steps.own().round(o) == o),
        };
        let problem = if sizes != (rows * columns, cells, cells, rows * self.unit_columns()) {
            format!("{rows} × {columns} in groups of {}, but {sizes:?} parts", grid.group_size)
        } else if !scales.iter().chain(zeros).all(|number| number.is_finite()) {
            let remedy = phrase!["use a smaller ", Setting::RoundingDamping, " or more samples"];
            return Err(Error::NotFinite { place: format!("scales of {}", self.name), remedy });
        } else if self.codes.iter().any(|&q| f32::from(q) > limit) {
            format!("a code of more than {} bits", grid.bits)
        } else if !possible_zeros || !of_type(scales) || !self.are_multiples() {
            format!("a scale or zero point that cannot lie on {grid:?}")
        } else {
            return Ok(());
        };
        Err(Error::shape("StoredLinear::check", format!("{}: {problem}", self.name)))
    }

    /// Whether units are f16 numbers, and the numbers that share them are multiples in range. The arrays must have their sizes.
    fn are_multiples(&self) -> bool {
        let Some(shared) = self.grid.shared_groups() else { return true };
        let groups = self.groups();
        let units = groups.div_ceil(shared);
        // Offsets are stored with the opposite sign.
        let fits = |numbers: &[f32], units_before: usize, steps: Steps, sign: f32| {
            let [least, most] = steps.multiples().unwrap_or_default();
            numbers.iter().enumerate().all(|(cell, &x)| {
                let unit = self.units[units_before + cell / groups * units + cell % groups / shared];
                let number = if unit == 0.0 { 0.0 } else { sign * x / unit };
                number.fract() == 0.0 && (least..=most).contains(&number) && sign * number * unit == x
            })
        };
        let offsets = match self.grid.zero {
            Zero::Offset(steps) => fits(&self.zeros, self.rows * units, steps, -1.0),
            Zero::Fixed(_) | Zero::Code => true,
        };
        let of_type = self.units.iter().all(|&unit| ScaleType::F16.round(unit) == unit);
        of_type && offsets && fits(&self.scales, 0, self.grid.scale, 1.0)
    }

    /// Dequantizes to s·(q − z) or s·q + o, `[rows, columns]`. A product of an f16 and a whole number below 256 is exact.
    pub fn dequantize(&self) -> Vec<f32> {
        let groups = self.groups();
        let mut weight = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(self.columns).enumerate() {
            for (group, codes) in codes.chunks(self.grid.group_size).enumerate() {
                let (scale, second) = (self.scales[row * groups + group], self.zeros[row * groups + group]);
                let (zero, offset) = if self.grid.has_offsets() { (0.0, second) } else { (second, 0.0) };
                weight.extend(codes.iter().map(|&q| scale * (f32::from(q) - zero) + offset));
            }
        }
        weight
    }

    /// The zero points as small numbers, for a grid that has them.
    pub fn zero_points(&self) -> Vec<u8> {
        self.zeros.iter().map(|&z| z as u8).collect()
    }

    /// The scales as f16, for a grid that stores them so.
    pub fn half_scales(&self) -> Vec<f16> {
        self.scales.iter().map(|&s| f16::from_f32(s)).collect()
    }

    /// The stored numbers that are divided when row `row` is: the units of its scales, or its scales.
    pub fn divisible(&self, row: usize) -> &[f32] {
        let groups = self.groups();
        match self.grid.shared_groups() {
            None => &self.scales[row * groups..][..groups],
            Some(shared) => {
                let units = groups.div_ceil(shared);
                &self.units[row * units..][..units]
            }
        }
    }

    /// Divides the values of row `row` by `divisor`, and rounds the stored numbers to their types.
    pub fn divide_row(&mut self, row: usize, divisor: f32) {
        let groups = self.groups();
        let cells = row * groups..(row + 1) * groups;
        let offset_type = if let Zero::Offset(steps) = self.grid.zero { Some(steps.own()) } else { None };
        let Some(shared) = self.grid.shared_groups() else {
            let scale_type = self.grid.scale.own();
            self.scales[cells.clone()].iter_mut().for_each(|s| *s = scale_type.round(*s / divisor));
            if let Some(kind) = offset_type {
                self.zeros[cells].iter_mut().for_each(|o| *o = kind.round(*o / divisor));
            }
            return;
        };
        let units = groups.div_ceil(shared);
        let rescale = |numbers: &mut [f32], unit: &mut f32| {
            let new = ScaleType::F16.round(*unit / divisor);
            let ratio = |x: f32| if *unit == 0.0 { 0.0 } else { new * (x / *unit).round() };
            numbers.iter_mut().for_each(|x| *x = ratio(*x));
            *unit = new;
        };
        for index in 0..units {
            let place = cells.start + index * shared..(cells.start + (index + 1) * shared).min(cells.end);
            rescale(&mut self.scales[place.clone()], &mut self.units[row * units + index]);
            if offset_type.is_some() {
                rescale(&mut self.zeros[place], &mut self.units[(self.rows + row) * units + index]);
            }
        }
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
