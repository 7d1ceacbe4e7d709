//! Plans a checkpoint before any work is done: its shards, tensors and documents, to the byte.
//!
//! A plan is made from the source checkpoint, a format and the settings of a run. The writer carries it out.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::format::{Format, Part, PlannedLayer, PlannedModel, QuantizationSettings};
use super::header::byte_size;
use super::passengers::TensorGroup;
use super::reader::Checkpoint;
use super::shards::{CONFIG_FILE, INDEX_FILE, SINGLE_FILE};
use crate::family::{LinearSpec, ModelConfig, state_both_forms};
use crate::{Error, Result};

/// Default limit of a shard in bytes. A shard stays below it, header included, unless a single tensor is larger.
pub const DEFAULT_SHARD_LIMIT: u64 = 5_000_000_000;

/// The contents of a checkpoint to be written: a copy of another one with some layers quantized.
#[derive(Debug, Clone)]
pub struct WritePlan {
    pub(super) format: &'static dyn Format,
    pub(super) shards: Vec<Shard>,
    /// JSON files such as `config.json`, each with name and content.
    pub(super) documents: Vec<(String, String)>,
    notes: Vec<String>,
    copied: Vec<TensorGroup>,
    left_out: Vec<TensorGroup>,
    bytes: u64,
    bits_per_weight: f64,
}

/// One weight file.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    pub file: String,
    /// The first bytes of the file: the header length and the JSON header.
    pub header: Vec<u8>,
    pub items: Vec<Item>,
}

/// One thing to write into a shard. Items are written in the order of the file.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// The tensor `name`, copied from byte range `range` of a source file. The caller of the writer may replace its
    /// values.
    Copy { name: String, file: usize, range: Range<u64> },
    /// The weight `name`, which the source stores in low precision, as floats of the type `dtype`.
    Widen { name: String, dtype: Dtype },
    /// A quantized layer that the caller of the writer hands over.
    Linear(PlannedLayer),
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

/// An item with the tensors that it becomes in the file.
struct Unit {
    item: Item,
    tensors: Vec<PlannedTensor>,
}

/// A tensor of the new checkpoint with its size in bytes.
struct PlannedTensor {
    part: Part,
    bytes: u64,
}

impl PlannedTensor {
    fn new(part: Part) -> Result<Self> {
        let wide: Vec<u64> = part.shape.iter().map(|&n| n as u64).collect();
        match byte_size(part.dtype, &wide) {
            Some(bytes) => Ok(Self { part, bytes }),
            None => {
                let Part { name, dtype, shape } = part;
                Err(Error::shape("WritePlan", format!("{name}: {dtype} of shape {shape:?}")))
            }
        }
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
    pub fn new(
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
        let model = planned_model(source, format, settings, linears)?;
        let units = units(source, format, &model)?;
        let bits_per_weight = bits_per_weight(&units);
        let copied = copied_groups(source, &units);
        let left_out = left_out_groups(source);
        let groups = split_into_shards(units, shard_limit);
        let mut documents = documents(source, format, &model);
        let count = groups.len();
        let mut weight_map = Map::new();
        let mut shards = Vec::with_capacity(count);
        let (mut tensor_bytes, mut file_bytes) = (0, 0);
        for (position, group) in groups.into_iter().enumerate() {
            let file = shard_name(position, count);
            let (header, data) = header(&group)?;
            tensor_bytes += data;
            file_bytes += header.len() as u64 + data;
            for tensor in group.iter().flat_map(|unit| &unit.tensors) {
                weight_map.insert(tensor.part.name.clone(), file.clone().into());
            }
            shards.push(Shard { file, header, items: group.into_iter().map(|unit| unit.item).collect() });
        }
        if count > 1 {
            let index = json!({ "metadata": { "total_size": tensor_bytes }, "weight_map": weight_map });
            documents.push((INDEX_FILE.to_owned(), pretty(&index)));
        }
        let documents_bytes: usize = documents.iter().map(|(_, text)| text.len()).sum();
        let sidecar_bytes: u64 = source.sidecars().map(|file| file.len()).sum();
        let bytes = file_bytes + documents_bytes as u64 + sidecar_bytes;
        let notes = format.notes(&model);
        Ok(Self { format, shards, documents, notes, copied, left_out, bytes, bits_per_weight })
    }

    /// Known limits: what some clients will not do with this checkpoint. Each note is a sentence without a full stop.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors of the source that the model does not use and that are copied, with their sizes in the copy.
    pub fn copied(&self) -> &[TensorGroup] {
        &self.copied
    }

    /// The tensors of the source that the copy leaves out because they have no meaning in it, with their sizes in the
    /// source.
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
fn planned_model(
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
    let planned = |(spec, bits): (&LinearSpec, u32)| {
        let grid = format.grid(spec, settings.wish(spec.columns, bits))?;
        let is_head = spec.name == head.name;
        let weight = if is_head { source.config().output_weight() } else { spec.weight() };
        let layer = PlannedLayer { spec: spec.clone(), grid, original: source.dtype(&weight)? };
        Ok((spec.name.clone(), layer))
    };
    let layers = chosen.into_iter().map(planned).collect::<Result<_>>()?;
    Ok(PlannedModel { settings, linears, head, layers })
}

/// All items to write, in order: the tensors of the model in model order, then those of the source that the model does
/// not use.
///
/// Some readers need every tensor to start at a multiple of its element size. The tensors of the model have even
/// widths, so each takes a multiple of four bytes. The other tensors follow, widest element type first.
fn units(source: &Checkpoint, format: &dyn Format, model: &PlannedModel) -> Result<Vec<Unit>> {
    let config = source.config();
    let mut expected: Vec<String> = config.expected_tensors().into_iter().map(|(name, _)| name).collect();
    if unties_head(source, model) {
        expected.push(model.head.weight());
    }
    let mut others: Vec<&str> = source.unused().copied.keys().map(String::as_str).collect();
    let width = |name: &str| source.dtype(name).map_or(0, |dtype| dtype.bitsize());
    others.sort_by_key(|name| std::cmp::Reverse(width(name)));
    let names = expected.iter().map(String::as_str).chain(others);
    let layer = |name: &str| name.strip_suffix(".weight").and_then(|module| model.layers.get(module));
    names
        .map(|name| match layer(name) {
            Some(layer) => linear_unit(layer, format),
            None if source.is_packed(name) => widened_unit(source, name),
            None => copy_unit(source, name),
        })
        .collect()
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
    let written = units.iter().flat_map(|unit| &unit.tensors);
    let part = |tensor: &PlannedTensor| Some((*source.unused().copied.get(&tensor.part.name)?, tensor.bytes));
    TensorGroup::all(written.filter_map(part))
}

/// The tensors of the source that the copy leaves out, in groups.
fn left_out_groups(source: &Checkpoint) -> Vec<TensorGroup> {
    let bytes = |name: &str| source.tensor(name).map_or(0, |tensor| tensor.range.end - tensor.range.start);
    TensorGroup::all(source.unused().left_out.iter().map(|(name, part)| (*part, bytes(name))))
}

fn copy_unit(source: &Checkpoint, name: &str) -> Result<Unit> {
    let tensor = source.tensor(name)?;
    let part = Part { name: name.to_owned(), dtype: tensor.dtype, shape: tensor.shape.clone() };
    let item = Item::Copy { name: name.to_owned(), file: tensor.file, range: tensor.range.clone() };
    Ok(Unit { item, tensors: vec![PlannedTensor::new(part)?] })
}

fn widened_unit(source: &Checkpoint, name: &str) -> Result<Unit> {
    let (dtype, shape) = (source.dtype(name)?, source.shape(name)?.to_vec());
    let part = Part { name: name.to_owned(), dtype, shape };
    Ok(Unit { item: Item::Widen { name: name.to_owned(), dtype }, tensors: vec![PlannedTensor::new(part)?] })
}

fn linear_unit(layer: &PlannedLayer, format: &dyn Format) -> Result<Unit> {
    let tensors = format.parts(layer).into_iter().map(PlannedTensor::new).collect::<Result<_>>()?;
    Ok(Unit { item: Item::Linear(layer.clone()), tensors })
}

/// Distributes the units over shards of less than `limit` bytes. The size of the header is estimated generously.
fn split_into_shards(units: Vec<Unit>, limit: u64) -> Vec<Vec<Unit>> {
    const ENTRY: u64 = 160;
    let size = |unit: &Unit| -> u64 { unit.tensors.iter().map(|t| t.bytes + t.part.name.len() as u64 + ENTRY).sum() };
    let mut shards: Vec<Vec<Unit>> = vec![Vec::new()];
    let mut filled = ENTRY;
    for unit in units {
        let bytes = size(&unit);
        if filled + bytes >= limit && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            filled = ENTRY;
        }
        filled += bytes;
        shards.last_mut().expect("there is always a shard").push(unit);
    }
    shards
}

fn shard_name(position: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", position + 1),
    }
}

/// The first bytes of a weight file, and the size of the data that follows. The header is padded with spaces to a
/// multiple of 8 bytes.
fn header(units: &[Unit]) -> Result<(Vec<u8>, u64)> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0;
    for PlannedTensor { part, bytes } in units.iter().flat_map(|unit| &unit.tensors) {
        let start = end;
        end += bytes;
        let entry = json!({ "dtype": part.dtype.to_string(), "shape": part.shape, "data_offsets": [start, end] });
        entries.insert(part.name.clone(), entry);
    }
    let mut text = Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    Ok((bytes, end))
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
