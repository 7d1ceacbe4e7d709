//! The trait that every checkpoint format implements, and the types that formats exchange with the rest of
//! `checkpoint`.
//!
//! A format decides on which grids a layer can be quantized, which tensors a quantized layer becomes, and what
//! `config.json` says about them. Each format is one file in `formats/`, and `formats/mod.rs` has the table of all
//! formats. The write plan and the writer use [`Format`], and neither knows a format by name. How packed layers are read
//! again is told in `layout`.
//!
//! A format also says what becomes of the tensors that are not quantized ([`Format::rest`]), under which names tensors
//! are stored, and in which container. Unless it says otherwise, the write plan copies such tensors unchanged, and widens
//! those that the source stores in low precision. The plan also unties the output matrix. A matrix that is tied to the
//! embedding becomes a tensor of its own once it is quantized.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::LocalBoxFuture;
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::change::Change;
use super::gguf::mixtures::Mixture;
use super::gguf::model::GgufModel;
use super::reader::Checkpoint;
use crate::Result;
use crate::family::{LinearSpec, ModelConfig};
use crate::ops::grid::{GridSpec, ScaleType, Symmetry};
use crate::stored::{Form, StoredLinear};

/// A way to store quantized layers in a checkpoint. A format has no state: the settings of a run arrive as arguments.
pub trait Format: fmt::Debug + Sync {
    /// The name by which users choose the format.
    fn name(&self) -> &'static str;

    /// A description in a few words for a list of formats, without a full stop.
    fn summary(&self) -> &'static str;

    /// Whether the format can store layers in this form. The quantization method decides the form.
    fn stores(&self, form: Form) -> bool;

    /// The grid on which the layer `linear` is to be quantized. `wish` is the grid that the run asks for.
    ///
    /// The write plan calls this before any computation starts, and the pipeline quantizes the layer on this grid.
    ///
    /// Errors: `Error::Input` with the reason if the format cannot store such a layer.
    fn grid(&self, linear: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec>;

    /// How the tensors are stored in files.
    fn container(&self) -> Container {
        Container::Directory { written_for: "pt" }
    }

    /// What the format must know of the model before it can plan anything else.
    ///
    /// Errors: `Error::Input` if the format cannot hold the model or its tokenizer.
    fn prepare<'a>(&'a self, source: &'a Checkpoint) -> LocalBoxFuture<'a, Result<Prepared>> {
        let _ = source;
        Box::pin(async { Ok(Prepared::Nothing) })
    }

    /// The name in the files of `name`, a module path or tensor name of the source. The same rule holds for a module and
    /// for its tensors. By default names stay as they are.
    ///
    /// Errors: `Error::Input` if the format has no name for it.
    fn stored_name(&self, (config, prepared): (&ModelConfig, &Prepared), name: &str) -> Result<String> {
        let _ = (config, prepared);
        Ok(name.to_owned())
    }

    /// What happens to the rows of the weight of the layer `name`: nothing, or another order. By default nothing.
    ///
    /// Errors: `Error::Input` if the format cannot hold the rows.
    fn rows(&self, prepared: &Prepared, name: &str) -> Result<Change> {
        let _ = (prepared, name);
        Ok(Change::None)
    }

    /// What becomes of a tensor that is not quantized. Its name is a matter of [`stored_name`](Self::stored_name). By
    /// default it is kept.
    ///
    /// Errors: `Error::Input` if the format cannot store the tensor.
    fn rest(&self, model: &PlannedModel, tensor: &RestTensor<'_>) -> Result<Rest> {
        let _ = (model, tensor);
        Ok(Rest::Keep)
    }

    /// Tensors that the source lacks and that the format adds. They follow those of the model.
    fn added(&self, model: &PlannedModel) -> Vec<AddedTensor> {
        let _ = model;
        Vec::new()
    }

    /// The tensors that store `layer`, in the order in which they are written.
    fn parts(&self, layer: &PlannedLayer) -> Vec<Part>;

    /// The contents of the tensors of [`parts`](Self::parts), little-endian and in the same order. `linear` must have
    /// passed [`PlannedLayer::check`].
    ///
    /// Errors: `Error::Shape` if the format cannot store the form of `linear`; `Error::NotFinite` if a number is too
    /// large for its element type.
    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>>;

    /// Adds the description of the quantized layers to `config`, the `config.json` of the new checkpoint. Returns
    /// further JSON files to write, each with its name and content.
    fn describe(&self, model: &PlannedModel, config: &mut Map<String, Value>) -> Vec<(String, Value)> {
        let _ = (model, config);
        Vec::new()
    }

    /// Known limits: what some clients will not do with this checkpoint. Each note is a sentence without a full stop.
    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        let _ = model;
        Vec::new()
    }
}

/// One tensor of a stored layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Tensor name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// The grid that a run asks for in a layer.
#[derive(Debug, Clone, Copy)]
pub struct GridWish<'a> {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; equal to the number of inputs if there is one group per row.
    pub group_size: usize,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// The mixture of types that is asked for by name.
    pub mixture: Option<Mixture>,
    /// The float type of the model.
    pub float: Dtype,
    /// The model.
    pub config: &'a ModelConfig,
    /// What the format knows of the model.
    pub prepared: &'a Prepared,
}

impl GridWish<'_> {
    /// The grid with zero points that is wished for, with scales of type `scale`.
    pub fn with_zeros(self, scale: ScaleType) -> GridSpec {
        let symmetry = if self.symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        GridSpec::new(self.bits, self.group_size, symmetry, scale)
    }
}

/// What a format knows of the model that it stores.
#[derive(Debug, Clone, PartialEq)]
pub enum Prepared {
    /// It needs to know nothing.
    Nothing,
    /// Names and metadata of a GGUF file.
    Gguf(Box<GgufModel>),
}

/// How the tensors of a checkpoint are stored in files.
#[derive(Debug, Clone, Copy)]
pub enum Container {
    /// A directory with weight files in the safetensors format, `config.json` and all other files of the model.
    Directory {
        /// The program for which the weight files are written, which is the value of `format` in their metadata.
        written_for: &'static str,
    },
    /// One file, and nothing else. The documents of the format and the other files of the model are not written.
    File {
        /// Name of the file, for destinations that do not name it themselves.
        name: &'static str,
        /// Every tensor starts at a multiple of this many bytes. The gaps hold zeros, also after the last tensor.
        alignment: u64,
        /// Makes what comes before the tensors. The plan fills it up with zeros to a multiple of `alignment`.
        head: fn(&PlannedModel, &[PlacedTensor]) -> Result<Vec<u8>>,
    },
}

impl Container {
    /// Every tensor starts at a multiple of this many bytes.
    pub(super) fn alignment(&self) -> u64 {
        match *self {
            Self::Directory { .. } => 1,
            Self::File { alignment, .. } => alignment,
        }
    }
}

/// A tensor of the new checkpoint with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTensor {
    /// Name, element type and shape.
    pub part: Part,
    /// Distance in bytes from the start of the first tensor of the file.
    pub offset: u64,
    /// Size in bytes, without the gap to the next tensor.
    pub bytes: u64,
}

/// A tensor of the source that is not quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestTensor<'a> {
    /// Name in the source.
    pub name: &'a str,
    /// Element type that the tensor has in an ordinary copy.
    pub dtype: Dtype,
    /// Dimensions, outermost first. A weight has `[outputs, inputs]`, also where the source stores it transposed.
    pub shape: &'a [usize],
    /// What the tensor belongs to if the model does not use it, as words that can follow "of the".
    pub passenger: Option<&'static str>,
}

/// What becomes of a tensor that is not quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// It is copied. If the source stores it in low precision, it is widened to an ordinary float type.
    Keep,
    /// It is read as numbers `[outputs, inputs]`, changed, and stored in another element type.
    Convert {
        /// Element type in the files: F32, F16 or BF16.
        dtype: Dtype,
        /// What happens to the values.
        change: Change,
    },
    /// It is rounded to a grid, each number by itself, and stored as a quantized layer is. This is for matrices that are
    /// not solved for, such as the embedding.
    Round(GridSpec),
    /// It is not stored.
    LeaveOut,
}

/// A tensor that a format adds.
#[derive(Debug, Clone, PartialEq)]
pub struct AddedTensor {
    /// Name, element type and shape. The element type is F32, F16 or BF16.
    pub part: Part,
    /// The values, row-major.
    pub values: Vec<f32>,
}

/// The settings of a run that matter to the files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizationSettings {
    /// Bits per code of the layers that have no setting of their own.
    pub bits: u32,
    /// Inputs per group; `None` means one group per output row.
    pub group_size: Option<usize>,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// The mixture of types that is asked for by name, for the formats that have any.
    pub mixture: Option<Mixture>,
    /// Damping of the rounding, ρ_r, as a share of the mean diagonal of the hessian. It is only recorded in the files.
    pub damping: f64,
}

impl QuantizationSettings {
    /// The grid with zero points and f16 scales in a layer with `columns` inputs, at `bits` bits per code.
    pub fn grid(&self, columns: usize, bits: u32) -> GridSpec {
        let symmetry = if self.symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        GridSpec::new(bits, self.group_size.unwrap_or(columns), symmetry, ScaleType::F16)
    }
}

/// A layer to be quantized, with the grid on which the format will store it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLayer {
    /// Module path in the source, and shape.
    pub spec: LinearSpec,
    /// Module path in the files.
    pub module: String,
    /// What happens to the rows of the weight: nothing, or another order.
    pub change: Change,
    /// The grid that the format chose.
    pub grid: GridSpec,
    /// Element type of the original weight.
    pub original: Dtype,
}

impl PlannedLayer {
    /// Checks that `linear` is this layer, quantized as planned.
    ///
    /// Errors: `Error::Shape` if name, shape or grid differ from the plan; otherwise the errors of
    /// [`StoredLinear::check`]: `Error::Shape` for arrays that contradict the other fields, `Error::NotFinite` for a
    /// scale that is not finite.
    pub fn check(&self, linear: &StoredLinear) -> Result<()> {
        let planned = (self.spec.name.as_str(), [self.spec.rows, self.spec.columns]);
        let given = (linear.name(), linear.shape());
        let fault = match linear {
            _ if given != planned => format!("{given:?} where {planned:?} is due"),
            StoredLinear::Codes(codes) if codes.grid != self.grid => {
                format!("{}: {:?}, planned with {:?}", codes.name, codes.grid, self.grid)
            }
            _ => return linear.check(),
        };
        Err(crate::Error::shape("put_linear", fault))
    }
}

/// A model in which some layers are to be quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedModel {
    /// The settings of the run.
    pub settings: QuantizationSettings,
    /// The model, with the names of the source.
    pub config: ModelConfig,
    /// What the format knows of the model.
    pub prepared: Prepared,
    /// The float type of the model: that of its embedding, or the one to which weights in low precision are widened.
    pub float: Dtype,
    /// The linear layers of all blocks, quantized or not, in model order.
    pub linears: Vec<LinearSpec>,
    /// The output matrix (`lm_head`).
    pub head: LinearSpec,
    /// The layers to be quantized, by module path.
    pub layers: BTreeMap<String, PlannedLayer>,
}

impl PlannedModel {
    /// Bits per code of the layer `module`, or `None` if the layer is not quantized.
    pub fn bits_of(&self, module: &str) -> Option<u32> {
        self.layers.get(module).map(|layer| layer.grid.bits)
    }
}
