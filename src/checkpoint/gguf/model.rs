//! A model on its way into a GGUF file: its names, its metadata, and the type of every tensor.

use super::architectures::{GgufTensor, Mapping};
use super::container::{self, TensorInfo};
use super::metadata::{Metadata, Value};
use super::mixtures::{Mixture, ModelFacts, Role, TensorFacts};
use super::tokenizer::TokenizerFiles;
use super::types::{BlockType, ScaleStorage, Zero as BlockZero};
use crate::checkpoint::Checkpoint;
use crate::error::{Setting, phrase};
use crate::ops::grid::{GridSpec, ScaleType, Steps, Zero};
use crate::{Error, Result};

/// The output matrix in a file.
pub const OUTPUT: &str = "output.weight";

/// What a GGUF file says of a model, and where it has the tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufModel {
    /// Names and order of the tensors, and the metadata of the architecture.
    pub mapping: Mapping,
    /// The pairs of the tokenizer.
    tokenizer: Metadata,
    /// What llama.cpp does otherwise than the model and its tokenizer, as sentences without a full stop.
    pub notes: Vec<String>,
    /// Name of the model.
    name: String,
    /// The inputs of all layers that can be quantized.
    widths: Vec<usize>,
    /// Number of layers.
    layers: usize,
    /// Query heads per key and value head in the first layer.
    heads_per_kv_head: usize,
    /// The layers with values in their attention.
    value_layers: Vec<usize>,
}

impl GgufModel {
    /// Names the tensors of `source`, and reads its tokenizer.
    ///
    /// Errors: `Error::Input` if llama.cpp knows no such model or tokenizer.
    pub async fn of(source: &Checkpoint) -> Result<Self> {
        let config = source.config();
        let mapping = Mapping::of_model(source.name(), config)?;
        let mut tokenizer = Metadata::new();
        let mut notes = mapping.notes.clone();
        notes.extend(TokenizerFiles::of(source).await?.write(&mut tokenizer)?);
        let widths =
            config.linears().into_iter().filter(|linear| linear.quantizable).map(|linear| linear.columns).collect();
        let layers = config.blocks.len();
        let values = mapping.tensors.iter().filter(|tensor| Role::of(&tensor.name) == Role::Value);
        let value_layers = values.filter_map(|tensor| layer_of(&tensor.name)).collect();
        let attention = config.blocks.first().and_then(|block| block.attentions().next());
        let heads_per_kv_head = attention.map_or(0, |(_, attention)| attention.heads / attention.kv_heads.max(1));
        let name = last_part(source.name()).to_owned();
        Ok(Self { mapping, tokenizer, notes, name, widths, layers, heads_per_kv_head, value_layers })
    }

    /// The tensor of the file that holds the tensor `name` of the model.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.mapping.holder(name).map(|(tensor, _)| tensor)
    }

    /// The name in the file of the tensor, or of the module, `name`. `None` if the file has no such tensor.
    pub fn stored_name(&self, name: &str) -> Option<String> {
        if let Some(tensor) = self.tensor(name) {
            return Some(tensor.name.clone());
        }
        let tensor = self.tensor(&format!("{name}.weight"))?;
        tensor.name.strip_suffix(".weight").map(str::to_owned)
    }

    /// The type of the matrix `name` of the file, with rows of `columns` elements. `tied`: whether the embedding is also the
    /// output matrix.
    pub fn block_type(&self, mixture: Mixture, name: &str, columns: usize, tied: bool) -> BlockType {
        let architecture = match self.mapping.metadata.get("general.architecture") {
            Some(Value::Text(name)) => name.as_str(),
            _ => "",
        };
        let model = ModelFacts {
            architecture,
            layers: self.layers,
            tied,
            heads_per_kv_head: self.heads_per_kv_head,
            experts: 0,
            value_layers: &self.value_layers,
        };
        let facts = TensorFacts { role: Role::of(name), layer: layer_of(name).unwrap_or(0), columns, stacked: false };
        mixture.block_type(&model, &facts)
    }

    /// The mixture for a wish of `bits` bits per weight: the K types where all rows are whole blocks of them, else the types
    /// with smaller blocks.
    ///
    /// Errors: `Error::Input` if there is no such type.
    pub fn mixture_for(&self, bits: u32, symmetric: bool) -> Result<Mixture> {
        mixture_for(bits, symmetric, &self.widths)
    }

    /// The head of the file. `tensors`: all tensors, in the order of the file; `further`: pairs that describe the
    /// quantization.
    ///
    /// Errors: `Error::Shape` if a name or a shape cannot be stored.
    pub fn head(&self, mixture: Mixture, tensors: &[TensorInfo], further: &Metadata) -> Result<Vec<u8>> {
        let mut all = Metadata::new();
        let architecture = self.mapping.metadata.iter();
        // The architecture comes first, as in other files.
        for (key, value) in architecture.chain(further.iter()).chain(self.tokenizer.iter()) {
            all.set(key, value.clone());
            if key == "general.architecture" {
                all.set("general.name", Value::Text(self.name.clone()));
                all.set("general.quantization_version", Value::U32(2));
                all.set("general.file_type", Value::U32(mixture.file_type()));
            }
        }
        container::head(&all, tensors)
    }
}

/// As [`GgufModel::mixture_for`], for rows of these `widths`.
fn mixture_for(bits: u32, symmetric: bool, widths: &[usize]) -> Result<Mixture> {
    let divided_by = |block: usize| widths.iter().all(|width| width.is_multiple_of(block));
    let refuse = |expected: &str| {
        let remedy = phrase!["choose one of these, or a type by name with ", Setting::Mixture];
        Err(Error::input(Setting::Bits, bits.to_string(), expected, remedy))
    };
    match bits {
        8 => Ok(Mixture::Q8_0),
        2 if divided_by(256) => Ok(Mixture::Q2K),
        3 if divided_by(256) => Ok(Mixture::Q3KM),
        4 if divided_by(256) => Ok(Mixture::Q4KM),
        2 if divided_by(64) => Ok(Mixture::Q2_0),
        4 if symmetric => Ok(Mixture::Q4_0),
        4 => Ok(Mixture::Q4_1),
        _ if divided_by(256) => refuse("2, 3, 4 or 8 for a GGUF file"),
        _ if divided_by(64) => refuse("2, 4 or 8 for a GGUF file of a model whose rows are no multiples of 256"),
        _ => refuse("4 or 8 for a GGUF file of a model whose rows are no multiples of 64"),
    }
}

/// The grid of a type. `None` for plain floats, and for types with a table of values.
pub fn grid_of(block_type: BlockType) -> Option<GridSpec> {
    let grid = block_type.grid()?;
    let scale = match grid.scale {
        ScaleStorage::F16 => Steps::Own(ScaleType::F16),
        ScaleStorage::Small { bits, signed, groups } => Steps::Shared { bits, signed, groups },
        ScaleStorage::PowerOfTwo => return None,
    };
    let (zero, signed) = match grid.zero {
        BlockZero::Code(code) => (Zero::Fixed(u32::from(code)), true),
        BlockZero::Offset => (Zero::Offset(scale), false),
        BlockZero::Table(_) => return None,
    };
    Some(GridSpec { bits: grid.codes.ilog2(), group_size: grid.group_size, zero, scale, signed })
}

/// The type with the grid `spec`.
pub fn type_of(spec: &GridSpec) -> Option<BlockType> {
    BlockType::ALL.into_iter().find(|block_type| grid_of(*block_type).as_ref() == Some(spec))
}

/// The number of the layer of the tensor `name` of a file, such as 3 for `blk.3.attn_q.weight`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// The last part of a path; all of it if there is none.
fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().filter(|part| !part.is_empty()).unwrap_or(path)
}
