//! One GGUF file, which llama.cpp, Ollama, LM Studio and wllama read (formats.md, section d).
//!
//! `checkpoint/gguf` knows names, metadata and block types. This file says which type each tensor has, and what happens to
//! its values: gains of norms may count from 1, and rows of queries and keys may have another order.

use futures::future::LocalBoxFuture;
use safetensors::Dtype;

use super::codes_of;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::change::{Change, ordered};
use crate::checkpoint::format::{
    AddedTensor, Container, Format, GridWish, Part, PlacedTensor, PlannedLayer, PlannedModel, Prepared, Rest,
    RestTensor,
};
use crate::checkpoint::gguf::architectures::RowOrder;
use crate::checkpoint::gguf::blocks::{self, BlockCodes};
use crate::checkpoint::gguf::container::TensorInfo;
use crate::checkpoint::gguf::metadata::{Metadata, Value};
use crate::checkpoint::gguf::mixtures::{Mixture, is_quantized};
use crate::checkpoint::gguf::model::{GgufModel, OUTPUT, grid_of, type_of};
use crate::checkpoint::gguf::types::BlockType;
use crate::error::{Setting, phrase};
use crate::family::{LinearSpec, ModelConfig};
use crate::ops::grid::GridSpec;
use crate::stored::{Form, StoredLinear};
use crate::{Error, Result};

/// Writes one file with weights, tokenizer and metadata.
#[derive(Debug)]
pub struct Gguf;

/// Every tensor starts at a multiple of this many bytes.
const ALIGNMENT: u64 = 32;

impl Format for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn summary(&self) -> &'static str {
        "One GGUF file, for llama.cpp, Ollama, LM Studio and wllama"
    }

    fn stores(&self, form: Form) -> bool {
        form == Form::Codes
    }

    fn prepare<'a>(&'a self, source: &'a Checkpoint) -> LocalBoxFuture<'a, Result<Prepared>> {
        Box::pin(async move { Ok(Prepared::Gguf(Box::new(GgufModel::of(source).await?))) })
    }

    fn grid(&self, linear: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        let model = prepared(wish.prepared)?;
        let mixture = match wish.mixture {
            Some(mixture) => mixture,
            None => model.mixture_for(wish.bits, wish.symmetric)?,
        };
        let name = format!("{}.weight", stored_name((wish.config, model), &linear.name)?);
        let tied = wish.config.tie_word_embeddings && name != OUTPUT;
        let block_type = model.block_type(mixture, &name, linear.columns, tied);
        grid_of(block_type).ok_or_else(|| {
            let found = format!("{block_type} for {}, with {} inputs", linear.name, linear.columns);
            let remedy =
                phrase!["choose another type with ", Setting::Mixture, ", or leave the layer out with ", Setting::Skip];
            Error::input(Setting::Mixture, found, "a type that this program quantizes to", remedy)
        })
    }

    fn container(&self) -> Container {
        Container::File { name: "model.gguf", alignment: ALIGNMENT, head }
    }

    fn stored_name(&self, (config, known): (&ModelConfig, &Prepared), name: &str) -> Result<String> {
        stored_name((config, prepared(known)?), name)
    }

    fn rows(&self, known: &Prepared, name: &str) -> Result<Change> {
        let model = prepared(known)?;
        Ok(model
            .tensor(&format!("{name}.weight"))
            .map_or(Change::None, |tensor| change_of(&tensor.rows, tensor.shape[0])))
    }

    fn rest(&self, model: &PlannedModel, tensor: &RestTensor<'_>) -> Result<Rest> {
        let known = prepared(&model.prepared)?;
        let Some(stored) = known.tensor(tensor.name) else { return Ok(Rest::LeaveOut) };
        if stored.sources.len() > 1 {
            let remedy = phrase!["choose another ", Setting::Format];
            let found = format!("{} among {} tensors that llama.cpp has as one", tensor.name, stored.sources.len());
            return Err(Error::input(Setting::Format, found, "tensors that the file has one by one", remedy));
        }
        let block_type = match stored.is_float() {
            true => BlockType::F32,
            false => type_in_file(model, &stored.name, tensor.shape)?,
        };
        let change = match change_of(&stored.rows, tensor.shape[0]) {
            Change::None if stored.added == 1.0 => Change::PlusOne,
            change => change,
        };
        let dtype = match block_type {
            BlockType::F32 => Dtype::F32,
            BlockType::F16 => Dtype::F16,
            BlockType::Bf16 => Dtype::BF16,
            _ => return Ok(grid_of(block_type).map_or(Rest::Convert { dtype: model.float, change }, Rest::Round)),
        };
        Ok(Rest::Convert { dtype, change })
    }

    fn added(&self, model: &PlannedModel) -> Vec<AddedTensor> {
        let Prepared::Gguf(known) = &model.prepared else { return Vec::new() };
        let part = |name: &str, length: usize| Part { name: name.to_owned(), dtype: Dtype::F32, shape: vec![length] };
        let added = known.mapping.added.iter();
        added.map(|t| AddedTensor { part: part(&t.name, t.values.len()), values: t.values.clone() }).collect()
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        let shape = [layer.spec.rows, layer.spec.columns];
        let bytes = type_of(&layer.grid).and_then(|block_type| block_type.bytes_of(&shape)).unwrap_or_default();
        vec![Part { name: format!("{}.weight", layer.module), dtype: Dtype::U8, shape: vec![bytes as usize] }]
    }

    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        let linear = codes_of(linear)?;
        let Some(block_type) = type_of(&linear.grid) else {
            return Err(Error::shape("gguf::pack", format!("{:?}, which no type has", linear.grid)));
        };
        let (scale_units, offset_units) = match linear.grid.has_offsets() {
            true => linear.units.split_at(linear.units.len() / 2),
            false => (&linear.units[..], &[][..]),
        };
        let offsets = if linear.grid.has_offsets() { &linear.zeros[..] } else { &[] };
        let shape = [linear.rows, linear.columns];
        let Change::Rows(order) = &layer.change else {
            let whole =
                BlockCodes { codes: &linear.codes, scales: &linear.scales, offsets, units: scale_units, offset_units };
            return Ok(vec![blocks::pack(block_type, shape, &whole)?]);
        };
        let (codes, scales) = (ordered(&linear.codes, order), ordered(&linear.scales, order));
        let [offsets, units, offset_units] =
            [offsets, scale_units, offset_units].map(|numbers| ordered(numbers, order));
        let moved = BlockCodes {
            codes: &codes,
            scales: &scales,
            offsets: &offsets,
            units: &units,
            offset_units: &offset_units,
        };
        Ok(vec![blocks::pack(block_type, shape, &moved)?])
    }

    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        let Prepared::Gguf(known) = &model.prepared else { return Vec::new() };
        let types = model.layers.values().filter_map(|layer| type_of(&layer.grid));
        let new = types.into_iter().any(|block_type| block_type == BlockType::Q2_0);
        let new = new.then(|| "programs with a llama.cpp from before July 2026 do not know the type Q2_0".to_owned());
        known.notes.iter().cloned().chain(fallback(model)).chain(new).collect()
    }
}

/// What the format knows of the model.
fn prepared(known: &Prepared) -> Result<&GgufModel> {
    match known {
        Prepared::Gguf(model) => Ok(model),
        Prepared::Nothing => Err(Error::shape("gguf", "a model without names for its tensors")),
    }
}

/// As [`Format::stored_name`]. An output matrix that is no longer tied to the embedding has a name of its own.
fn stored_name((config, model): (&ModelConfig, &GgufModel), name: &str) -> Result<String> {
    let head = config.head_linear().name;
    let known = model.stored_name(name).or_else(|| match name.strip_prefix(head.as_str()) {
        Some("") => OUTPUT.strip_suffix(".weight").map(str::to_owned),
        Some(".weight") => Some(OUTPUT.to_owned()),
        _ => None,
    });
    known.ok_or_else(|| Error::shape("gguf", format!("no name for {name}")))
}

/// The order of rows as a change.
fn change_of(order: &RowOrder, rows: usize) -> Change {
    match order {
        RowOrder::Same => Change::None,
        _ => Change::Rows(order.sources(rows).into_iter().map(|row| row as u32).collect()),
    }
}

/// The mixture of the file.
fn mixture(model: &PlannedModel) -> Result<Mixture> {
    let settings = &model.settings;
    match settings.mixture {
        Some(mixture) => Ok(mixture),
        None => prepared(&model.prepared)?.mixture_for(settings.bits, settings.symmetric),
    }
}

/// The type of the tensor `name` of the file that is not one of the layers to be quantized.
fn type_in_file(model: &PlannedModel, name: &str, shape: &[usize]) -> Result<BlockType> {
    let known = prepared(&model.prepared)?;
    let outside = !name.starts_with("blk.");
    if shape.len() < 2 {
        return Ok(BlockType::F32);
    }
    // A layer that is left out of the quantization keeps its floats.
    if !outside || !is_quantized(name, shape.len()) {
        return Ok(float_type(model.float));
    }
    let tied = model.config.tie_word_embeddings && !model.layers.contains_key(&model.head.name);
    Ok(known.block_type(mixture(model)?, name, shape[1], tied))
}

/// The type of plain floats.
fn float_type(dtype: Dtype) -> BlockType {
    match dtype {
        Dtype::F16 => BlockType::F16,
        Dtype::BF16 => BlockType::Bf16,
        _ => BlockType::F32,
    }
}

/// A note on layers that have another type than the mixture gives, because their rows are no whole blocks of it.
fn fallback(model: &PlannedModel) -> Option<String> {
    let wanted = mixture(model).ok()?.default_type();
    let narrow = |layer: &&PlannedLayer| !layer.spec.columns.is_multiple_of(wanted.block_weights());
    let narrow: Vec<&PlannedLayer> = model.layers.values().filter(narrow).collect();
    let first = narrow.first()?;
    let instead = type_of(&first.grid)?;
    let layers = if narrow.len() == 1 { "layer has" } else { "layers have" };
    Some(format!(
        "{} {layers} rows of {} weights, which are no whole blocks of {wanted}, so they become {instead}, as llama.cpp does it",
        narrow.len(),
        first.spec.columns
    ))
}

/// The head of the file.
fn head(model: &PlannedModel, placed: &[PlacedTensor]) -> Result<Vec<u8>> {
    let known = prepared(&model.prepared)?;
    let info = |placed: &PlacedTensor| -> Result<TensorInfo> {
        let Part { name, dtype, shape } = &placed.part;
        if *dtype != Dtype::U8 {
            return Ok(TensorInfo { name: name.clone(), shape: shape.clone(), block_type: float_type(*dtype) });
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if let Some(layer) = model.layers.values().find(|layer| layer.module == module) {
            let block_type = type_of(&layer.grid).ok_or_else(|| Error::shape("gguf", format!("the type of {name}")))?;
            return Ok(TensorInfo { name: name.clone(), shape: vec![layer.spec.rows, layer.spec.columns], block_type });
        }
        let tensor = known.mapping.tensors.iter().find(|tensor| tensor.name == *name);
        let shape = tensor.ok_or_else(|| Error::shape("gguf", format!("the shape of {name}")))?.shape.clone();
        Ok(TensorInfo { name: name.clone(), block_type: type_in_file(model, name, &shape)?, shape })
    };
    let infos: Vec<TensorInfo> = placed.iter().map(info).collect::<Result<_>>()?;
    let mut further = Metadata::new();
    let by = format!("aquatint {}", env!("CARGO_PKG_VERSION"));
    further.set("general.quantized_by", Value::Text(by));
    known.head(mixture(model)?, &infos, &further)
}
