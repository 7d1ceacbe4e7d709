//! What a format decides: on which grids layers can be quantized, which tensors they become, and what the files say about them.
//!
//! Each format is one file in `formats/`, which also has the table of all of them. The plan and the writer ask a [`Format`], the
//! reader asks [`PackedLayers`], and none of them knows a format by name. Tensors that are not quantized are the plan's: it copies
//! them as they are, and an output matrix that is tied to the embedding becomes a matrix of its own once it is quantized.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::Result;
use crate::family::LinearSpec;
use crate::stored::{Form, LayerGrid, StoredLinear};

/// A way to store quantized layers in a checkpoint. Formats have no state: what a run chose arrives with the model.
pub trait Format: fmt::Debug + Sync {
    /// The word by which users choose it.
    fn name(&self) -> &'static str;

    /// What it is, in a few words for a list of formats, without a full stop.
    fn summary(&self) -> &'static str;

    /// Whether it can store layers that a method leaves in this form.
    fn stores(&self, form: Form) -> bool;

    /// The grid on which the layer `linear` is to be quantized where `wish` was asked for.
    ///
    /// Errors: `Error::Input` with the reason if the format stores no such layer. Nothing has been computed by then.
    fn grid(&self, linear: &LinearSpec, wish: LayerGrid) -> Result<LayerGrid>;

    /// The tensors that `layer` becomes, in the order in which they are written.
    fn parts(&self, layer: &PlannedLayer) -> Vec<Part>;

    /// The content of these tensors, little-endian, in the same order. `linear` has passed [`PlannedLayer::check`].
    ///
    /// Errors: `Error::Shape` if the format does not store this form; `Error::NotFinite` if a number is too large for it.
    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>>;

    /// Adds to `config`, the future config.json, how the layers are stored. Returns further files of JSON: name and content.
    fn describe(&self, model: &PlannedModel, config: &mut Map<String, Value>) -> Vec<(String, Value)> {
        let _ = (model, config);
        Vec::new()
    }

    /// What some client will not do with such a checkpoint, each a sentence without a full stop.
    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        let _ = model;
        Vec::new()
    }

    /// What sentences call its layout, where layers become several tensors and [`open`](Self::open) reads them again.
    fn layout(&self) -> Option<&'static str> {
        None
    }

    /// Reads the description of a quantized checkpoint, which `subject` names in messages. `None` if it is of another format.
    ///
    /// Errors: `Error::Input` if it is of this format and has a field that cannot be used.
    fn open(&self, description: &Map<String, Value>, subject: &str) -> Result<Option<Box<dyn PackedLayers>>> {
        let _ = (description, subject);
        Ok(None)
    }
}

/// The quantized layers of one checkpoint, as its description says that they are stored.
pub trait PackedLayers: fmt::Debug {
    /// Whether the layer `module` is stored quantized. `has` says whether the checkpoint has a tensor of that name.
    fn holds(&self, module: &str, has: &dyn Fn(&str) -> bool) -> bool;

    /// The tensors that stand for the weight of `module`, `[rows, columns]`. Any float type may stand in the place of another.
    fn parts(&self, module: &str, shape: [usize; 2]) -> Vec<Part>;

    /// The weight that a layer stands for, `[rows, columns]`, row-major.
    ///
    /// Errors: `Error::Input` if the parts contradict each other or the description.
    fn dequantize(&self, layer: &PackedLayer<'_>) -> Result<Vec<f32>>;
}

/// One of the tensors of a stored layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl Part {
    /// Whether its elements are floats.
    pub(super) fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

/// The elements of a [`Part`], as read from a file.
#[derive(Debug, Clone, PartialEq)]
pub enum PartData {
    /// 32-bit words.
    Words(Vec<u32>),
    /// Finite floats.
    Floats(Vec<f32>),
}

/// A packed layer, read from a checkpoint.
#[derive(Debug)]
pub struct PackedLayer<'a> {
    /// How the user knows the checkpoint.
    pub place: &'a str,
    /// Module path.
    pub module: &'a str,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// The tensors, in the order of [`PackedLayers::parts`] and of the sizes given there.
    pub parts: Vec<PartData>,
}

/// What a run asked for, as far as it matters to files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizationSettings {
    /// Bits per code where a layer has none of its own.
    pub bits: u32,
    /// Inputs per group; `None` is one group per output row.
    pub group_size: Option<usize>,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// Damping of the rounding.
    pub damping: f64,
}

impl QuantizationSettings {
    /// The grid that is asked for, of a layer with `columns` inputs and codes of `bits` bits.
    pub fn wish(&self, columns: usize, bits: u32) -> LayerGrid {
        LayerGrid { bits, group_size: self.group_size.unwrap_or(columns), symmetric: self.symmetric }
    }
}

/// A layer to be quantized, as the format will store it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLayer {
    /// Name and shape.
    pub spec: LinearSpec,
    /// The grid that the format chose for it.
    pub grid: LayerGrid,
    /// Element type of the original weight.
    pub original: Dtype,
}

impl PlannedLayer {
    /// Errors: `Error::Shape` if `linear` is not this layer, is not whole, or was quantized on another grid than planned;
    /// `Error::NotFinite` if a scale of it is not finite.
    pub fn check(&self, linear: &StoredLinear) -> Result<()> {
        let planned = (self.spec.name.as_str(), [self.spec.rows, self.spec.columns]);
        let given = (linear.name(), linear.shape());
        let fault = match linear {
            _ if given != planned => format!("{given:?} where {planned:?} is due"),
            StoredLinear::Codes(codes) if codes.grid() != self.grid => {
                format!("{}: {:?}, planned with {:?}", codes.name, codes.grid(), self.grid)
            }
            _ => return linear.check(),
        };
        Err(crate::Error::shape("put_linear", fault))
    }
}

/// A model of which some layers are to be quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedModel {
    /// What the run asked for.
    pub settings: QuantizationSettings,
    /// The linear layers of all blocks, quantized or not, in model order.
    pub linears: Vec<LinearSpec>,
    /// The output matrix.
    pub head: LinearSpec,
    /// The layers to be quantized, by module path.
    pub layers: BTreeMap<String, PlannedLayer>,
}

impl PlannedModel {
    /// Bits per code of the layer `module`; `None` if it keeps its weight.
    pub fn bits_of(&self, module: &str) -> Option<u32> {
        self.layers.get(module).map(|layer| layer.grid.bits)
    }
}
