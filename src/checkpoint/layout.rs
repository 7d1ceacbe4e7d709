//! The layouts in which the weights of a checkpoint may be packed, and the types that a layout exchanges with the
//! reader.
//!
//! A layout finds the tensors that store a weight and turns them back into numbers. Some layouts are results of a
//! quantization, which formats write too; others are the low precision in which a model was released. `layouts/mod.rs`
//! has the table of all layouts. The reader knows none of them by name.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::format::Part;
use crate::{Error, Result};

/// What a layout makes of a quantization configuration: a reader of the weights, `None` if the checkpoint has another
/// layout, or an error.
pub type Opened = Result<Option<Box<dyn PackedLayers>>>;

/// A layout of packed weights: a row of the table of layouts.
#[derive(Debug)]
pub struct Layout {
    /// Name in messages, such as "GPTQ".
    pub name: &'static str,
    /// What the weights in this layout are.
    pub origin: Origin,
    /// Reads the quantization configuration of a checkpoint. The second argument names its file in messages.
    ///
    /// Errors: `Error::Input` if the checkpoint has this layout and one of its fields cannot be used.
    pub(super) open: fn(&Map<String, Value>, &str) -> Opened,
}

/// What to do about a tensor that holds a NaN or an infinity.
pub(super) const BROKEN: &str = "download the file again; if it stays so, the model itself is broken";

/// What the packed weights of a checkpoint are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The weights as the model was released, in low precision. They are widened on read and may be quantized.
    Release,
    /// The result of a quantization. It is read, but not quantized again.
    Quantization,
}

/// Finds a stored tensor by its name: its element type and its dimensions. `None` if there is no such tensor.
pub type Lookup<'a> = dyn Fn(&str) -> Option<(Dtype, &'a [usize])> + 'a;

/// Reads the packed weights of one checkpoint, according to its quantization configuration.
pub trait PackedLayers: fmt::Debug {
    /// The tensors that store the weight `name` of shape `shape`. `None` if it is stored as an ordinary float tensor,
    /// or not at all.
    ///
    /// For a part of a float type, the file may use any other float type. A part without dimensions may have any
    /// number of dimensions of 1.
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>>;

    /// Whether every weight is stored as `[outputs, inputs]`, also in a family that stores weights transposed. This
    /// concerns the weights that are ordinary floats, too.
    fn stores_rows(&self) -> bool {
        false
    }

    /// Names of further tensors that a file may hold for the packed weight `name`. They say how a client rounds the
    /// inputs of the layer. No weight depends on them, and a copy of the model leaves them out.
    fn input_scales(&self, name: &str) -> Vec<String> {
        let _ = name;
        Vec::new()
    }

    /// Turns the parts back into the wanted rows of the weight, row-major.
    ///
    /// Errors: `Error::Input` if the tensors contradict each other or the quantization configuration;
    /// `Error::NotFinite` if a weight is NaN or infinite.
    fn unpack(&self, weight: &PackedWeight<'_>) -> Result<Vec<f32>>;
}

/// The contents of a packed weight, as read from a checkpoint.
#[derive(Debug)]
pub struct PackedWeight<'a> {
    /// Directory or name of the checkpoint, for messages.
    pub place: &'a str,
    /// Tensor name of the weight, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: &'a str,
    /// Rows (outputs) and columns (inputs). All dimensions but the last count as rows.
    pub shape: [usize; 2],
    /// The rows that are wanted.
    pub rows: Range<usize>,
    /// Contents of the tensors, in the order and with the sizes of [`PackedLayers::parts`].
    pub parts: Vec<PartData<'a>>,
}

impl PackedWeight<'_> {
    /// The indices of the elements of the wanted rows, row-major.
    pub fn elements(&self) -> Range<usize> {
        self.rows.start * self.shape[1]..self.rows.end * self.shape[1]
    }

    /// The error for a weight that holds a NaN or an infinity.
    pub(super) fn not_finite(&self) -> Error {
        let place = format!("{}, tensor {}", self.place, self.name);
        Error::NotFinite { place, remedy: BROKEN.into() }
    }
}

/// The elements of a [`Part`], as read from a file.
#[derive(Debug, Clone, PartialEq)]
pub enum PartData<'a> {
    /// 32-bit words, of a part whose elements have 32 bits.
    Words(Vec<u32>),
    /// Bytes, of a part whose elements have 8 bits.
    Bytes(Cow<'a, [u8]>),
    /// Floats, converted to f32. All are finite.
    Floats(Vec<f32>),
}

/// The module path of the weight `name`: its name without `.weight`. A name without this ending stays as it is.
pub fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}
