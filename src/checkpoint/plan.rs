//! Plans a checkpoint before any work is done: its files, tensors and documents, to the byte.
//!
//! A plan is made from the source checkpoint, a format and the settings of a run. `arrange` places its tensors in files,
//! and the writer carries it out.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::arrange::{PlannedTensor, Unit, WeightFile, arrange};
use super::change::Change;
use super::floats;
use super::format::{
    AddedTensor, Container, Format, GridWish, Part, PlannedLayer, PlannedModel, QuantizationSettings, Rest, RestTensor,
};
use super::passengers::TensorGroup;
use super::reader::Checkpoint;
use super::shards::{CONFIG_FILE, INDEX_FILE};
use crate::family::{LinearSpec, ModelConfig, state_both_forms};
use crate::ops::grid::GridSpec;
use crate::{Error, Result};

/// Default limit of a shard in bytes. A shard stays below it, header included, unless a single tensor is larger.
pub const DEFAULT_SHARD_LIMIT: u64 = 5_000_000_000;

/// The contents of a checkpoint to be written: a copy of another one with some layers quantized.
#[derive(Debug, Clone)]
pub struct WritePlan {
    pub(super) format: &'static dyn Format,
    pub(super) files: Vec<WeightFile>,
    /// JSON files such as `config.json`, each with name and content. Empty if the format has a single file.
    pub(super) documents: Vec<(String, String)>,
    /// The grids of the layers to be quantized.
    grids: BTreeMap<String, GridSpec>,
    notes: Vec<String>,
    copied: Vec<TensorGroup>,
    left_out: Vec<TensorGroup>,
    bytes: u64,
    bits_per_weight: f64,
}

/// One thing to write into a file. Items are written in the order of the file.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// The tensor `name` of the source, copied from byte range `range` of a source file. The caller of the writer may
    /// replace its values.
    Copy { name: String, file: usize, range: Range<u64> },
    /// The tensor `name` of the source, read as numbers. The caller of the writer may replace them.
    Convert { name: String, conversion: Conversion },
    /// The matrix `name` of the source, rounded to the grid of `layer`.
    Round { name: String, layer: PlannedLayer },
    /// A tensor that the format adds, as little-endian bytes.
    Add(Vec<u8>),
    /// A quantized layer that the caller of the writer hands over.
    Linear(PlannedLayer),
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversion {
    /// What happens to the values.
    pub change: Change,
    /// Element type in the files: F32, F16 or BF16.
    pub dtype: Dtype,
}

impl Item {
    /// Name of the tensor of the source that becomes this item, if it is not quantized.
    pub fn source(&self) -> Option<&str> {
        match self {
            Self::Copy { name, .. } | Self::Convert { name, .. } | Self::Round { name, .. } => Some(name),
            Self::Add(_) | Self::Linear(_) => None,
        }
    }
}

/// A layer that a run wants quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// Module path.
    pub name: String,
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
}

impl LayerPlan {
    /// All linear layers of all blocks, each at `bits` bits per code.
    pub fn all(config: &ModelConfig, bits: u32) -> Vec<Self> {
        config.linear_names().into_iter().map(|name| Self { name, bits }).collect()
    }
}

impl WritePlan {
    /// Plans a copy of `source` in which the layers `linears` are quantized. If `lm_head` is one of them and tied to
    /// the embedding, it is untied. Each shard stays below `shard_limit` bytes; [`DEFAULT_SHARD_LIMIT`] suits every
    /// client.
    ///
    /// A source in low precision is no obstacle: the layers that are not quantized are written as ordinary floats, in the
    /// type of [`Checkpoint::dtype`].
    ///
    /// Errors: `Error::Input` if `source` is itself the result of a quantization, or if the format cannot store one of
    /// the layers; `Error::Shape` if `linears` names a layer that the model lacks.
    pub async fn new(
        source: &Checkpoint,
        format: &'static dyn Format,
        settings: QuantizationSettings,
        linears: &[LayerPlan],
        shard_limit: u64,
    ) -> Result<Self> {
        if source.quantized_layout().is_some() {
            let expected = "float weights";
            let found = "a checkpoint that is quantized already";
            return Err(Error::input(source.name(), found, expected, "quantize the original model"));
        }
        let model = planned_model(source, format, settings, linears).await?;
        let (units, left_out) = units(source, format, &model)?;
        let bits_per_weight = bits_per_weight(&units);
        let copied = copied_groups(source, &units);
        let container = format.container();
        let files = arrange(units, container, &model, shard_limit)?;
        let mut bytes = files.iter().map(|file| file.bytes).sum();
        let mut documents = Vec::new();
        if let Container::Directory { .. } = container {
            documents = self::documents(source, format, &model);
            documents.extend(index(&files));
            bytes += documents.iter().map(|(_, text)| text.len() as u64).sum::<u64>();
            bytes += source.sidecars().map(|file| file.len()).sum::<u64>();
        }
        let notes = format.notes(&model);
        let grids = model.layers.iter().map(|(name, layer)| (name.clone(), layer.grid)).collect();
        Ok(Self { format, files, documents, grids, notes, copied, left_out, bytes, bits_per_weight })
    }

    /// How the tensors are stored in files, which decides the kind of destination.
    pub fn container(&self) -> Container {
        self.format.container()
    }

    /// The grid of the layer `name`. `None` if it is not to be quantized.
    pub fn grid(&self, name: &str) -> Option<GridSpec> {
        self.grids.get(name).copied()
    }

    /// Known limits: what some clients will not do with this checkpoint. Each note is a sentence without a full stop.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors of the source that the model does not use and that are copied, with their sizes in the copy.
    pub fn copied(&self) -> &[TensorGroup] {
        &self.copied
    }

    /// The tensors of the source that the copy leaves out because they have no meaning in it or because the format does
    /// not store them, with their sizes in the source.
    pub fn left_out(&self) -> &[TensorGroup] {
        &self.left_out
    }

    /// Total size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bits per quantized weight in the files, with its share of scales, zero points and other tensors of the layer. 0
    /// if no layer is quantized.
    pub fn bits_per_weight(&self) -> f64 {
        self.bits_per_weight
    }
}

/// Describes the model for `format`: asks it for the grid of each of the layers `layers` of `source`.
async fn planned_model(
    source: &Checkpoint,
    format: &dyn Format,
    settings: QuantizationSettings,
    layers: &[LayerPlan],
) -> Result<PlannedModel> {
    let (linears, head) = (source.config().linears(), source.config().head_linear());
    let wanted: BTreeMap<&str, u32> = layers.iter().map(|layer| (layer.name.as_str(), layer.bits)).collect();
    let chosen: Vec<(&LinearSpec, u32)> = linears
        .iter()
        .chain([&head])
        .filter_map(|spec| wanted.get(spec.name.as_str()).map(|&bits| (spec, bits)))
        .collect();
    if chosen.len() != wanted.len() {
        let detail = format!("{} of {} layers are linear layers of the model", chosen.len(), wanted.len());
        return Err(Error::shape("WritePlan", detail));
    }
    let (config, float) = (source.config(), source.float());
    let prepared = format.prepare(source).await?;
    let planned = |(spec, bits): (&LinearSpec, u32)| {
        let wish = GridWish {
            bits,
            group_size: settings.group_size.unwrap_or(spec.columns),
            symmetric: settings.symmetric,
            mixture: settings.mixture,
            float,
            config,
            prepared: &prepared,
        };
        let grid = format.grid(spec, wish)?;
        let is_head = spec.name == head.name;
        let weight = if is_head { source.config().output_weight() } else { spec.weight() };
        let module = format.stored_name((config, &prepared), &spec.name)?;
        let change = format.rows(&prepared, &spec.name)?;
        let layer = PlannedLayer { spec: spec.clone(), module, change, grid, original: source.dtype(&weight)? };
        Ok((spec.name.clone(), layer))
    };
    let layers = chosen.into_iter().map(planned).collect::<Result<_>>()?;
    Ok(PlannedModel { settings, config: config.clone(), prepared, float, linears, head, layers })
}

/// All items to write, in order: the tensors of the model in model order, those that the format adds, then those of the
/// source that the model does not use. Also returns the groups of tensors of the source that are not written.
///
/// Some readers need every tensor to start at a multiple of its element size. The tensors of the model have even
/// widths, so each takes a multiple of four bytes. The other tensors follow, widest element type first.
fn units(source: &Checkpoint, format: &dyn Format, model: &PlannedModel) -> Result<(Vec<Unit>, Vec<TensorGroup>)> {
    let config = source.config();
    let mut expected: Vec<String> = config.expected_tensors().into_iter().map(|(name, _)| name).collect();
    if unties_head(source, model) {
        expected.push(model.head.weight());
    }
    let mut others: Vec<&str> = source.unused().copied.keys().map(String::as_str).collect();
    let width = |name: &str| source.dtype(name).map_or(0, |dtype| dtype.bitsize());
    others.sort_by_key(|name| std::cmp::Reverse(width(name)));
    let mut left_out: Vec<(&'static str, u64)> =
        source.unused().left_out.iter().map(|(name, part)| (*part, stored_bytes(source, name))).collect();
    let layer = |name: &str| name.strip_suffix(".weight").and_then(|module| model.layers.get(module));
    let mut units = Vec::new();
    for name in expected.iter().map(String::as_str) {
        match layer(name) {
            Some(layer) => units.push(linear_unit(layer, format)?),
            None => match rest_unit(source, format, model, name)? {
                Some(unit) => units.push(unit),
                None => left_out.push(("model", stored_bytes(source, name))),
            },
        }
    }
    for tensor in format.added(model) {
        units.push(added_unit(tensor)?);
    }
    for name in others {
        match rest_unit(source, format, model, name)? {
            Some(unit) => units.push(unit),
            None => left_out.push((source.unused().copied[name], stored_bytes(source, name))),
        }
    }
    Ok((units, TensorGroup::all(left_out.into_iter())))
}

/// Bits per quantized weight, over all tensors of the quantized layers; 0 if there is none.
fn bits_per_weight(units: &[Unit]) -> f64 {
    let (mut bytes, mut weights) = (0, 0);
    for unit in units {
        if let Item::Linear(PlannedLayer { spec, .. }) = &unit.item {
            bytes += unit.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
            weights += spec.rows as u64 * spec.columns as u64;
        }
    }
    if weights == 0 { 0.0 } else { 8.0 * bytes as f64 / weights as f64 }
}

/// The tensors among `units` that the model does not use, in groups.
fn copied_groups(source: &Checkpoint, units: &[Unit]) -> Vec<TensorGroup> {
    let part = |unit: &Unit| {
        let part = source.unused().copied.get(unit.item.source()?)?;
        Some((*part, unit.tensors.iter().map(|tensor| tensor.bytes).sum()))
    };
    TensorGroup::all(units.iter().filter_map(part))
}

/// Size of the tensor `name` in the source; 0 if it is packed into others.
fn stored_bytes(source: &Checkpoint, name: &str) -> u64 {
    source.tensor(name).map_or(0, |tensor| tensor.range.end - tensor.range.start)
}

/// The item for a tensor that is not quantized, or `None` if the format does not store it.
fn rest_unit(source: &Checkpoint, format: &dyn Format, model: &PlannedModel, name: &str) -> Result<Option<Unit>> {
    let (dtype, shape) = (source.dtype(name)?, source.shape(name)?);
    let passenger = source.unused().copied.get(name).copied();
    let conversion = match format.rest(model, &RestTensor { name, dtype, shape, passenger })? {
        Rest::LeaveOut => return Ok(None),
        Rest::Keep if source.is_packed(name) => Some(Conversion { change: Change::None, dtype }),
        Rest::Keep => None,
        Rest::Convert { dtype, change } => Some(Conversion { change, dtype }),
        Rest::Round(grid) => return rounded_unit(source, format, model, name, grid).map(Some),
    };
    let stored = format.stored_name((source.config(), &model.prepared), name)?;
    let (item, dtype, shape) = match conversion {
        None => {
            let tensor = source.tensor(name)?;
            let item = Item::Copy { name: name.to_owned(), file: tensor.file, range: tensor.range.clone() };
            (item, tensor.dtype, tensor.shape.clone())
        }
        Some(conversion) => {
            if !source.is_packed(name) {
                // Only floats can be read as numbers.
                source.floats(name)?;
            }
            conversion.change.check(shape)?;
            let (dtype, shape) = (conversion.dtype, shape.to_vec());
            (Item::Convert { name: name.to_owned(), conversion }, dtype, shape)
        }
    };
    let tensors = vec![PlannedTensor::new(Part { name: stored, dtype, shape })?];
    Ok(Some(Unit { item, tensors }))
}

/// The item for a matrix that is rounded to a grid.
fn rounded_unit(
    source: &Checkpoint,
    format: &dyn Format,
    model: &PlannedModel,
    name: &str,
    grid: GridSpec,
) -> Result<Unit> {
    let (module, &[rows, columns]) = (name.strip_suffix(".weight").unwrap_or(name), source.shape(name)?) else {
        return Err(Error::shape("WritePlan", format!("{name} on a grid, which is no matrix")));
    };
    let layer = PlannedLayer {
        spec: LinearSpec::new(module, rows, columns),
        module: format.stored_name((source.config(), &model.prepared), module)?,
        change: Change::None,
        grid,
        original: source.dtype(name)?,
    };
    let tensors = format.parts(&layer).into_iter().map(PlannedTensor::new).collect::<Result<_>>()?;
    Ok(Unit { item: Item::Round { name: name.to_owned(), layer }, tensors })
}

fn added_unit(AddedTensor { part, values }: AddedTensor) -> Result<Unit> {
    let tensor = PlannedTensor::new(part)?;
    let (Part { name, dtype, shape }, bytes) = (&tensor.part, floats::encode(&values, tensor.part.dtype));
    match bytes {
        Some(bytes) if bytes.len() as u64 == tensor.bytes => Ok(Unit { item: Item::Add(bytes), tensors: vec![tensor] }),
        _ => {
            let detail = format!("{} values for {name}, {dtype} of shape {shape:?}", values.len());
            Err(Error::shape("WritePlan", detail))
        }
    }
}

fn linear_unit(layer: &PlannedLayer, format: &dyn Format) -> Result<Unit> {
    let tensors = format.parts(layer).into_iter().map(PlannedTensor::new).collect::<Result<_>>()?;
    Ok(Unit { item: Item::Linear(layer.clone()), tensors })
}

/// The index of a checkpoint with several weight files, with its name.
fn index(files: &[WeightFile]) -> Option<(String, String)> {
    let tensors = || files.iter().flat_map(|file| file.tensors.iter().map(move |tensor| (file, tensor)));
    let total: u64 = tensors().map(|(_, tensor)| tensor.bytes).sum();
    let homes = tensors().map(|(file, tensor)| (tensor.part.name.clone(), Value::from(file.name.clone())));
    let weight_map: Map<_, _> = homes.collect();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    (files.len() > 1).then(|| (INDEX_FILE.to_owned(), pretty(&index)))
}

/// The documents of the checkpoint: those that the format adds, then `config.json`.
fn documents(source: &Checkpoint, format: &dyn Format, model: &PlannedModel) -> Vec<(String, String)> {
    let mut config = source.raw_config().clone();
    config.remove("quantization_config");
    let keys = source.config().keys_in(&mut config);
    state_both_forms(keys, &source.config().ropes);
    if unties_head(source, model) {
        // A model with other modalities has the key for itself and for its language model.
        keys.insert("tie_word_embeddings".to_owned(), false.into());
        config.insert("tie_word_embeddings".to_owned(), false.into());
    }
    let mut documents = format.describe(model, &mut config);
    documents.push((CONFIG_FILE.to_owned(), Value::Object(config)));
    documents.into_iter().map(|(name, content)| (name, pretty(&content))).collect()
}

/// Whether the output matrix is tied to the embedding in the source and becomes a tensor of its own in the copy.
fn unties_head(source: &Checkpoint, model: &PlannedModel) -> bool {
    source.config().tie_word_embeddings && model.layers.contains_key(&model.head.name)
}

/// Indented JSON with a final newline.
fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
