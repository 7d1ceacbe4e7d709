//! Arranges the tensors of a planned checkpoint in files: which file holds a tensor, at which place, and what comes before
//! the tensors.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::format::{Container, Part, PlacedTensor, PlannedModel};
use super::header::byte_size;
use super::plan::Item;
use super::shards::SINGLE_FILE;
use crate::{Error, Result};

/// An item with the tensors that it becomes in the file.
#[derive(Debug)]
pub struct Unit {
    pub item: Item,
    pub tensors: Vec<PlannedTensor>,
}

/// A tensor of the new checkpoint with its size in bytes.
#[derive(Debug)]
pub struct PlannedTensor {
    pub part: Part,
    pub bytes: u64,
}

impl PlannedTensor {
    /// Errors: `Error::Shape` if the tensor is no whole number of bytes, or too large for 64 bits.
    pub fn new(part: Part) -> Result<Self> {
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

/// One weight file.
#[derive(Debug, Clone)]
pub struct WeightFile {
    pub name: String,
    /// What comes before the tensors.
    pub head: Vec<u8>,
    /// The tensors in the order of the file.
    pub tensors: Vec<PlacedTensor>,
    /// The items that become the tensors, in the same order.
    pub items: Vec<Item>,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Distributes `units` over the files of `container`. Each weight file of a directory stays below `limit` bytes, unless a
/// single item is larger.
///
/// Errors: `Error::Shape` if two tensors have the same name; those of the function that makes the head of a file.
pub fn arrange(units: Vec<Unit>, container: Container, model: &PlannedModel, limit: u64) -> Result<Vec<WeightFile>> {
    let mut names = HashSet::new();
    if let Some(twice) = units.iter().flat_map(|unit| &unit.tensors).find(|tensor| !names.insert(&*tensor.part.name)) {
        return Err(Error::shape("WritePlan", format!("two tensors called {}", twice.part.name)));
    }
    match container {
        Container::Directory { written_for } => {
            let groups = split_into_shards(units, limit);
            let count = groups.len();
            let file = |(position, group)| {
                let (tensors, items, bytes) = place(group, container.alignment());
                let head = safetensors_head(&tensors, written_for);
                let bytes = bytes + head.len() as u64;
                WeightFile { name: shard_name(position, count), head, tensors, items, bytes }
            };
            Ok(groups.into_iter().enumerate().map(file).collect())
        }
        Container::File { name, alignment, head } => {
            let (tensors, items, bytes) = place(units, alignment);
            let mut head = head(model, &tensors)?;
            head.resize(head.len().next_multiple_of(alignment as usize), 0);
            let bytes = bytes + head.len() as u64;
            Ok(vec![WeightFile { name: name.to_owned(), head, tensors, items, bytes }])
        }
    }
}

/// Places the tensors of `units` one after the other, each at a multiple of `alignment`. Also returns the number of bytes
/// that they take, with the gap after the last one.
fn place(units: Vec<Unit>, alignment: u64) -> (Vec<PlacedTensor>, Vec<Item>, u64) {
    let (mut tensors, mut items) = (Vec::new(), Vec::with_capacity(units.len()));
    let mut offset = 0u64;
    for unit in units {
        for PlannedTensor { part, bytes } in unit.tensors {
            tensors.push(PlacedTensor { part, offset, bytes });
            offset = (offset + bytes).next_multiple_of(alignment);
        }
        items.push(unit.item);
    }
    (tensors, items, offset)
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

/// The first bytes of a safetensors file: the length of the header, and the header, which is padded with spaces to a
/// multiple of 8 bytes.
fn safetensors_head(tensors: &[PlacedTensor], written_for: &str) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": written_for }));
    for PlacedTensor { part, offset, bytes } in tensors {
        let range = [*offset, offset + bytes];
        let entry = json!({ "dtype": part.dtype.to_string(), "shape": part.shape, "data_offsets": range });
        entries.insert(part.name.clone(), entry);
    }
    let mut text = Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    bytes
}
