//! A GGUF file as a checkpoint: its metadata as the files that a checkpoint has, and its tensors as packed weights.

use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use super::architectures::{Contents, GgufTensor, Mapping, RowOrder, VALUES_READ, config_of};
use super::blocks;
use super::container::{Head, StoredTensor, read_head};
use super::metadata::Value;
use super::tokenizer::{special_tokens, tokenizer_json};
use super::types::BlockType;
use crate::checkpoint::format::Part;
use crate::checkpoint::layout::{Layout, Lookup, Origin, PackedLayers, PackedWeight, PartData};
use crate::checkpoint::layouts::Packing;
use crate::checkpoint::shards::Tensor;
use crate::checkpoint::source::{MemorySource, Source};
use crate::family::ModelConfig;
use crate::{Error, Result};

/// The layout of the weights in a GGUF file. No quantization configuration describes it.
pub static LAYOUT: Layout = Layout { name: "GGUF", origin: Origin::Quantization, open: |_, _| Ok(None) };

/// A GGUF file as the reader of checkpoints takes it.
pub(in crate::checkpoint) struct GgufFile {
    /// The file itself, and then config.json, tokenizer.json and the others that follow from its metadata.
    pub sources: Vec<Box<dyn Source>>,
    /// The tensors by their names in the file, as bytes.
    pub tensors: BTreeMap<String, Tensor>,
    /// Reader of the weights.
    pub packing: Packing,
}

/// Whether a checkpoint with these files is a single GGUF file.
pub(in crate::checkpoint) fn is_gguf(sources: &[Box<dyn Source>]) -> bool {
    matches!(sources, [source] if is_gguf_name(source.name()))
}

/// Whether `name` is the name of a GGUF file.
pub(in crate::checkpoint) fn is_gguf_name(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

impl GgufFile {
    /// Reads the head of `source`. `subject` names the file in messages.
    ///
    /// Errors: `Error::Input` if the file is damaged, or if it holds a model or a tokenizer that this crate cannot read.
    pub async fn open(subject: &str, source: Box<dyn Source>) -> Result<Self> {
        let head = read_head(&*source, subject).await?;
        let values = values(&*source, &head).await?;
        let shapes = head.tensors.iter().map(|tensor| (tensor.info.name.clone(), tensor.info.shape.clone())).collect();
        let contents = Contents { subject, metadata: &head.metadata, shapes: &shapes, values: &values };
        let config = Json::Object(config_of(&contents)?);
        let mapping = Mapping::of_model(subject, &ModelConfig::from_value(&config, subject)?)?;
        let mut files = vec![
            ("config.json", config.to_string()),
            ("tokenizer.json", tokenizer_json(subject, &head.metadata)?.to_string()),
        ];
        let special = special_tokens(subject, &head.metadata)?;
        let generation = json!({ "bos_token_id": special.begin, "eos_token_id": special.ends });
        files.push(("generation_config.json", generation.to_string()));
        if let Some(Value::Text(template)) = head.metadata.get("tokenizer.chat_template") {
            files.push(("chat_template.jinja", template.clone()));
        }
        let unread = |name: &str| mapping.added.iter().any(|tensor| tensor.name == name);
        let stored = head.tensors.iter().filter(|tensor| !unread(&tensor.info.name));
        let tensors = stored.map(|tensor| (tensor.info.name.clone(), as_bytes(tensor))).collect();
        check_shapes(subject, &mapping, &shapes)?;
        let types = head.tensors.iter().map(|tensor| (tensor.info.name.clone(), tensor.info.block_type)).collect();
        let mut sources: Vec<Box<dyn Source>> = vec![source];
        sources.extend(files.into_iter().map(|(name, text)| Box::new(MemorySource::new(name, text.into_bytes())) as _));
        let packing = Packing { layout: &LAYOUT, layers: Box::new(GgufLayers { mapping, types }) };
        Ok(Self { sources, tensors, packing })
    }
}

/// The elements of a tensor as bytes of the first file.
fn as_bytes(tensor: &StoredTensor) -> Tensor {
    let bytes = (tensor.range.end - tensor.range.start) as usize;
    Tensor { file: 0, dtype: Dtype::U8, shape: vec![bytes], range: tensor.range.clone() }
}

/// Reads the tensors whose values describe the model.
async fn values(source: &dyn Source, head: &Head) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut values = BTreeMap::new();
    for tensor in head.tensors.iter().filter(|tensor| VALUES_READ.contains(&tensor.info.name.as_str())) {
        let bytes = source.read(tensor.range.clone()).await?;
        values.insert(tensor.info.name.clone(), blocks::unpack(tensor.info.block_type, &bytes)?);
    }
    Ok(values)
}

/// Checks that the tensors of the model have the shapes that the metadata say.
fn check_shapes(subject: &str, mapping: &Mapping, shapes: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    for GgufTensor { name, shape, .. } in &mapping.tensors {
        let found = match shapes.get(name) {
            Some(stored) if stored == shape => continue,
            Some(stored) => format!("tensor {name} of shape {stored:?}"),
            None => format!("no tensor {name}"),
        };
        let remedy = "download the file again, or convert the model again";
        return Err(Error::input(subject, found, format!("{name} of shape {shape:?}, as its metadata say"), remedy));
    }
    Ok(())
}

/// The weights of one GGUF file.
#[derive(Debug)]
struct GgufLayers {
    mapping: Mapping,
    /// Type of every tensor of the file.
    types: HashMap<String, BlockType>,
}

impl PackedLayers for GgufLayers {
    fn parts(&self, name: &str, _: &[usize], _: &Lookup<'_>) -> Option<Vec<Part>> {
        let (tensor, _) = self.mapping.holder(name)?;
        let bytes = self.types.get(&tensor.name)?.bytes_of(&tensor.shape)?;
        Some(vec![Part { name: tensor.name.clone(), dtype: Dtype::U8, shape: vec![bytes as usize] }])
    }

    fn unpack(&self, weight: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let unknown = || Error::shape("gguf::unpack", format!("{}: not its tensor", weight.name));
        let (tensor, part) = self.mapping.holder(weight.name).ok_or_else(unknown)?;
        let (&block_type, [PartData::Bytes(bytes)]) =
            (self.types.get(&tensor.name).ok_or_else(unknown)?, &weight.parts[..])
        else {
            return Err(unknown());
        };
        // A vector has rows of one number, and comes here as a matrix of one row.
        let [rows, width] = if tensor.shape.len() == 1 { [weight.shape[1], 1] } else { weight.shape };
        let wanted = if tensor.shape.len() == 1 { 0..rows } else { weight.rows.clone() };
        // The tensor holds the weights of its sources one after the other.
        let first = part * rows;
        let total = tensor.shape.first().copied().unwrap_or(1);
        // Most tensors keep the order of rows, and need no list of them.
        let targets = (tensor.rows != RowOrder::Same).then(|| tensor.rows.targets(total));
        let place = |row: usize| targets.as_ref().map_or(row, |targets| targets[row]);
        let stride = bytes.len() / total.max(1);
        let mut values = Vec::with_capacity(wanted.len() * width);
        if width > 1 {
            for row in wanted {
                let at = place(first + row) * stride;
                values.extend(blocks::unpack(block_type, &bytes[at..at + stride])?);
            }
        } else {
            let all = blocks::unpack(block_type, bytes)?;
            values.extend(wanted.map(|row| all[place(first + row)]));
        }
        values.iter_mut().for_each(|value| *value -= tensor.added);
        if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(weight.not_finite()) }
    }
}
