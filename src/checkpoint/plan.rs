//! What a checkpoint to be written will consist of, to the byte, before any work is done.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::gptq::{GptqSettings, PackedPart};
use super::header::byte_size;
use super::reader::{CONFIG_FILE, Checkpoint, QUANTIZE_CONFIG_FILE};
use super::shards::{INDEX_FILE, SINGLE_FILE};
use crate::family::ModelConfig;
use crate::family::{LinearSpec, state_both_forms};
use crate::{Error, Result};

/// Shards stay below this many bytes, header included, unless a single tensor is larger.
pub const DEFAULT_SHARD_LIMIT: u64 = 5_000_000_000;

/// In which form quantized layers are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Format {
    /// Packed codes, scales and zero points.
    Gptq(GptqSettings),
    /// The dequantized weight, for clients that know no quantization: F32 if the layer was F32, else F16.
    ///
    /// F16 rounds s·(q − z) to 11 bits, as clients that dequantize in F16 do; BF16 would round it to 8.
    Float,
}

/// Name of the output matrix where it is not the embedding.
const HEAD_WEIGHT: &str = "lm_head.weight";

/// Contents of a checkpoint to be written.
#[derive(Debug, Clone)]
pub struct WritePlan {
    pub(super) format: Format,
    pub(super) shards: Vec<Shard>,
    /// Small files that follow from the plan: name and content.
    pub(super) documents: Vec<(String, String)>,
    bytes: u64,
    bits_per_weight: f64,
}

/// One weight file.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    pub file: String,
    /// Length prefix and JSON.
    pub header: Vec<u8>,
    pub items: Vec<Item>,
}

/// Something to be written, in the order of the file.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// Bytes of a file of the source, as they are unless the caller has handed over others: the tensor `name`.
    Copy { name: String, file: usize, range: Range<u64> },
    /// A layer that the caller will hand over.
    Linear(DueLinear),
}

/// A layer to be handed over.
#[derive(Debug, Clone)]
pub(super) struct DueLinear {
    pub spec: LinearSpec,
    /// Bits per code in `Format::Gptq`.
    pub bits: u32,
    /// Element type in `Format::Float`.
    pub dtype: Dtype,
}

/// A layer to be quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// Module path.
    pub name: String,
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
}

impl LayerPlan {
    /// All linears of all blocks, at `bits` bits.
    pub fn all(config: &ModelConfig, bits: u32) -> Vec<Self> {
        config.linear_names().into_iter().map(|name| Self { name, bits }).collect()
    }
}

/// An item with the tensors it becomes.
struct Unit {
    item: Item,
    tensors: Vec<PlannedTensor>,
}

struct PlannedTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
}

impl PlannedTensor {
    fn new(name: String, dtype: Dtype, shape: Vec<usize>) -> Result<Self> {
        let wide: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        match byte_size(dtype, &wide) {
            Some(bytes) => Ok(Self { name, dtype, shape, bytes }),
            None => Err(Error::shape("WritePlan", format!("{name}: {dtype} of shape {shape:?}"))),
        }
    }
}

impl WritePlan {
    /// Plans a copy of `source` in which the layers `linears` are quantized; `lm_head` may be one of them, and is then untied
    /// from the embedding. Shards stay below `shard_limit` bytes; [`DEFAULT_SHARD_LIMIT`] suits every client.
    ///
    /// Errors if `source` is quantized itself, or if the format cannot store a layer.
    pub fn new(source: &Checkpoint, format: Format, linears: &[LayerPlan], shard_limit: u64) -> Result<Self> {
        if source.config().quantization.is_some() {
            let expected = "float weights";
            let found = "a checkpoint that is quantized already";
            return Err(Error::input(source.name(), found, expected, "quantize the original model"));
        }
        let chosen = chosen_linears(source, linears)?;
        let units = units(source, format, &chosen)?;
        let bits_per_weight = bits_per_weight(&units);
        let groups = split(units, shard_limit);
        let mut documents = documents(source, format, &chosen);
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
                if weight_map.insert(tensor.name.clone(), file.clone().into()).is_some() {
                    return Err(twice(source, &tensor.name));
                }
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
        Ok(Self { format, shards, documents, bytes, bits_per_weight })
    }

    /// Size of all files together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bits that a quantized weight takes in the files, with its share of scales and zero points.
    pub fn bits_per_weight(&self) -> f64 {
        self.bits_per_weight
    }
}

fn twice(source: &Checkpoint, tensor: &str) -> Error {
    let found = format!("a stray tensor {tensor}, whose name the quantized layer needs");
    Error::input(source.name(), found, "float weights alone", "use the original model")
}

/// A layer to be quantized, with what the model says of it.
struct Chosen {
    spec: LinearSpec,
    bits: u32,
}

/// The named layers by the name of their weight.
fn chosen_linears(source: &Checkpoint, layers: &[LayerPlan]) -> Result<BTreeMap<String, Chosen>> {
    let wanted: BTreeMap<&str, u32> = layers.iter().map(|layer| (layer.name.as_str(), layer.bits)).collect();
    let all = source.config().linears().into_iter().chain([source.config().head_linear()]);
    let chosen: BTreeMap<String, Chosen> = all
        .filter_map(|spec| wanted.get(spec.name.as_str()).map(|&bits| Chosen { spec, bits }))
        .map(|chosen| (format!("{}.weight", chosen.spec.name), chosen))
        .collect();
    if chosen.len() != wanted.len() {
        let detail = format!("{} of {} layers are linear layers of the model", chosen.len(), wanted.len());
        return Err(Error::shape("WritePlan", detail));
    }
    Ok(chosen)
}

/// Everything to be written, in order: the model's tensors in model order, then those outside the module graph.
///
/// Tensors of the model take multiples of four bytes, as its widths are even; the others follow with the widest elements first,
/// so that every tensor starts at a multiple of its element size, which some readers need.
fn units(source: &Checkpoint, format: Format, chosen: &BTreeMap<String, Chosen>) -> Result<Vec<Unit>> {
    let config = source.config();
    let mut expected: Vec<String> = config.expected_tensors().into_iter().map(|(name, _)| name).collect();
    if unties(source, chosen) {
        expected.push(HEAD_WEIGHT.to_owned());
    }
    let known: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    let dropped = |name: &str| config.tie_word_embeddings && name == HEAD_WEIGHT;
    let mut others: Vec<&str> = source.stored_names().filter(|name| !known.contains(name) && !dropped(name)).collect();
    let width = |name: &str| source.tensor(name).map_or(0, |tensor| tensor.dtype.bitsize());
    others.sort_by_key(|name| std::cmp::Reverse(width(name)));
    let names = expected.iter().map(String::as_str).chain(others);
    names
        .map(|name| match chosen.get(name) {
            Some(chosen) if name == HEAD_WEIGHT => {
                linear_unit(chosen, format, source.dtype(&source.config().output_weight())?)
            }
            Some(chosen) => linear_unit(chosen, format, source.dtype(name)?),
            None => copy_unit(source, name),
        })
        .collect()
}

fn bits_per_weight(units: &[Unit]) -> f64 {
    let (mut bytes, mut weights) = (0, 0);
    for unit in units {
        if let Item::Linear(DueLinear { spec, .. }) = &unit.item {
            bytes += unit.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
            weights += spec.rows as u64 * spec.columns as u64;
        }
    }
    if weights == 0 { 0.0 } else { 8.0 * bytes as f64 / weights as f64 }
}

fn copy_unit(source: &Checkpoint, name: &str) -> Result<Unit> {
    let tensor = source.tensor(name)?;
    let planned = PlannedTensor::new(name.to_owned(), tensor.dtype, tensor.shape.clone())?;
    let item = Item::Copy { name: name.to_owned(), file: tensor.file, range: tensor.range.clone() };
    Ok(Unit { item, tensors: vec![planned] })
}

fn linear_unit(chosen: &Chosen, format: Format, source_dtype: Dtype) -> Result<Unit> {
    let Chosen { spec: linear, bits } = chosen;
    let dtype = if source_dtype == Dtype::F32 { Dtype::F32 } else { Dtype::F16 };
    let tensors = match format {
        Format::Float => {
            vec![PlannedTensor::new(format!("{}.weight", linear.name), dtype, vec![linear.rows, linear.columns])?]
        }
        Format::Gptq(settings) => {
            let layout = settings.layout(linear, *bits)?;
            let part = |part: PackedPart| {
                PlannedTensor::new(format!("{}.{}", linear.name, part.suffix), part.dtype, part.shape)
            };
            layout.parts().into_iter().map(part).collect::<Result<_>>()?
        }
    };
    Ok(Unit { item: Item::Linear(DueLinear { spec: linear.clone(), bits: *bits, dtype }), tensors })
}

/// Cuts the units into shards of less than `limit` bytes, counting generously for the header.
fn split(units: Vec<Unit>, limit: u64) -> Vec<Vec<Unit>> {
    const ENTRY: u64 = 160;
    let size = |unit: &Unit| -> u64 { unit.tensors.iter().map(|t| t.bytes + t.name.len() as u64 + ENTRY).sum() };
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

/// The start of a weight file, padded to whole 8 bytes, and the size of the data that follows.
fn header(units: &[Unit]) -> Result<(Vec<u8>, u64)> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in units.iter().flat_map(|unit| &unit.tensors) {
        let start = end;
        end += tensor.bytes;
        let entry = json!({ "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    Ok((bytes, end))
}

/// `config.json`, and with it `quantize_config.json` in the GPTQ format.
fn documents(source: &Checkpoint, format: Format, chosen: &BTreeMap<String, Chosen>) -> Vec<(String, String)> {
    let mut config = source.raw_config().clone();
    config.remove("quantization_config");
    if let Some(rope) = source.config().ropes.first() {
        state_both_forms(&mut config, rope);
    }
    let mut documents = Vec::new();
    if let Format::Gptq(settings) = format {
        let mut quantization = settings.to_json();
        exceptions(source, settings.bits, chosen, &mut quantization);
        documents.push((QUANTIZE_CONFIG_FILE.to_owned(), pretty(&quantization)));
        config.insert("quantization_config".to_owned(), quantization);
    }
    if unties(source, chosen) {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    }
    documents.push((CONFIG_FILE.to_owned(), pretty(&Value::Object(config))));
    documents
}

/// Whether the output matrix becomes a tensor of its own.
fn unties(source: &Checkpoint, chosen: &BTreeMap<String, Chosen>) -> bool {
    source.config().tie_word_embeddings && chosen.contains_key(HEAD_WEIGHT)
}

/// What clients must be told about layers that differ from the others: `modules_in_block_to_quantize` where the same
/// layers stay as they are in every block, which every client reads, else `dynamic`, which GPTQModel and vLLM read.
fn exceptions(source: &Checkpoint, bits: u32, chosen: &BTreeMap<String, Chosen>, quantization: &mut Value) {
    let config = source.config();
    if chosen.contains_key(HEAD_WEIGHT) {
        quantization["lm_head"] = true.into();
    }
    let treatment = |linear: &LinearSpec| chosen.get(&format!("{}.weight", linear.name)).map(|chosen| chosen.bits);
    let first: Vec<Option<u32>> = config.block_linears(0).iter().map(treatment).collect();
    let mut rules = Map::new();
    let mut rule = |module: &str, treatment: Option<u32>| match treatment {
        None => rules.insert(format!("-:^{module}$"), json!({})),
        Some(own) if own != bits => rules.insert(format!("+:^{module}$"), json!({ "bits": own })),
        Some(_) => None,
    };
    let blocks: Vec<Vec<LinearSpec>> = (0..config.blocks.len()).map(|layer| config.block_linears(layer)).collect();
    for (position, linear) in blocks[0].iter().enumerate() {
        if blocks.iter().all(|block| treatment(&block[position]) == first[position]) {
            let inside = linear.name.trim_start_matches("model.layers.0.");
            if first[position].is_some() {
                rule(&format!(r"model\.layers\.\d+\.{}", regex::escape(inside)), first[position]);
            }
            continue;
        }
        for block in &blocks {
            rule(&regex::escape(&block[position].name), treatment(&block[position]));
        }
    }
    if let Some(head) = chosen.get(HEAD_WEIGHT) {
        rule("lm_head", Some(head.bits));
    }
    let everywhere = |position: usize| blocks.iter().all(|block| treatment(&block[position]).is_none());
    if (0..first.len()).any(everywhere) {
        let kept = blocks[0].iter().enumerate().filter(|(position, _)| !everywhere(*position));
        let inside = |linear: &LinearSpec| linear.name.trim_start_matches("model.layers.0.").to_owned();
        let names: Vec<String> = kept.map(|(_, linear)| inside(linear)).collect();
        quantization["modules_in_block_to_quantize"] = json!([names]);
    }
    if !rules.is_empty() {
        quantization["dynamic"] = Value::Object(rules);
    }
}

/// JSON as people read it, with a final newline.
fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
