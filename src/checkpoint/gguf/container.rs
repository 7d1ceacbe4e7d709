//! The head of a GGUF file: key-value pairs and the list of tensors. Every value is checked before it is used, because
//! files may be damaged or hostile.
//!
//! Layout, little-endian: "GGUF", the version, the number of tensors, the number of pairs; the pairs; the tensors, each
//! with name, dimensions, type and offset; zeros up to a multiple of the alignment; the elements of the tensors in the
//! same order, each padded to the alignment.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use super::metadata::{Metadata, Value};
use super::types::BlockType;
use crate::checkpoint::source::Source;
use crate::error::Phrase;
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";
/// The version that [`head`] writes. Version 2 has the same layout.
const VERSION: u32 = 3;
/// Greatest length of a head in bytes. The greatest tokenizers of 2026 take about 20 MB.
const MAX_HEAD_BYTES: u64 = 256 << 20;
/// A tensor has at most this many dimensions.
const MAX_DIMENSIONS: usize = 4;
/// The name of a tensor has fewer bytes than this. llama.cpp reads no longer ones.
const MAX_NAME_BYTES: usize = 64;
/// The key of the alignment, and the alignment of a file without it.
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// The least bytes of a pair: length of the key, one letter, type and value.
const LEAST_PAIR: u64 = 8 + 1 + 4 + 1;
/// The least bytes of an entry in the list of tensors: length of the name, one letter, number of dimensions, type and
/// offset.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 4 + 8;

/// The numbers of the types of values that are not plain numbers.
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

const DAMAGED: &str = "download the file again; it is truncated or damaged";

/// An entry in the list of tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, outermost first: `[outputs, inputs]` for a matrix. The file has them in the opposite order.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub block_type: BlockType,
}

/// A tensor of a file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its entry in the list.
    pub info: TensorInfo,
    /// Byte range of the elements, from the start of the file.
    pub range: Range<u64>,
}

/// The head of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The key-value pairs.
    pub metadata: Metadata,
    /// The tensors in the order of the file.
    pub tensors: Vec<StoredTensor>,
}

/// The bytes to which the elements of each tensor are padded: a power of two, 32 unless the key `general.alignment` says
/// otherwise. `None` if that key holds anything else than a power of two as an unsigned number of 32 bits.
pub fn alignment(metadata: &Metadata) -> Option<u64> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Some(DEFAULT_ALIGNMENT),
        Some(Value::U32(bytes)) if bytes.is_power_of_two() => Some(u64::from(*bytes)),
        Some(_) => None,
    }
}

/// The zero bytes that follow `bytes` bytes up to a multiple of `alignment`.
pub fn padding(bytes: u64, alignment: u64) -> u64 {
    (alignment - bytes % alignment) % alignment
}

/// Reads and checks the head of `source`. `subject` names the file in error messages.
///
/// Errors: `Error::Input` if the file is no GGUF file of version 2 or 3 in little-endian byte order; if the head is
/// longer than the file or than 256 MB; if a key or a tensor occurs twice or has no name; if a value, a shape or the
/// alignment is not allowed; if a tensor has a type that this crate does not know; or if the elements of the tensors do
/// not follow each other inside the file. Errors of reading `source` are passed on.
pub async fn read_head(source: &dyn Source, subject: &str) -> Result<Head> {
    let total = source.len();
    let end = total.min(MAX_HEAD_BYTES);
    let mut cursor = Cursor { source, subject, buffer: Cow::Borrowed(&[]), start: 0, position: 0, end };
    check_version(&mut cursor).await?;
    let tensors = cursor.number().await?;
    let pairs = cursor.number().await?;
    cursor.check_count(tensors, LEAST_ENTRY, "tensors")?;
    cursor.check_count(pairs, LEAST_PAIR, "key-value pairs")?;
    let metadata = read_metadata(&mut cursor, pairs).await?;
    let Some(alignment) = alignment(&metadata) else {
        let found = format!("a value of {ALIGNMENT_KEY} that cannot be used");
        return Err(damaged(subject, found, "a power of two, as an unsigned number of 32 bits"));
    };
    let mut entries = Vec::with_capacity(tensors as usize);
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let (info, offset) = read_entry(&mut cursor).await?;
        if !names.insert(info.name.clone()) {
            return Err(damaged(subject, format!("tensor {} twice", info.name), "every name once"));
        }
        entries.push((info, offset));
    }
    let data_start = cursor.position + padding(cursor.position, alignment);
    let tensors = place(subject, entries, data_start..total, alignment)?;
    Ok(Head { metadata, tensors })
}

/// Reads the first eight bytes: "GGUF" and a version that can be read.
async fn check_version(cursor: &mut Cursor<'_>) -> Result<()> {
    let subject = cursor.subject;
    if cursor.end < 8 || cursor.take(4).await? != MAGIC {
        return Err(Error::input(subject, "a file that does not begin with GGUF", "a GGUF file", "choose a GGUF file"));
    }
    let version = u32::from_le_bytes(cursor.array().await?);
    // Small numbers in the other byte order have two bytes of zeros here.
    let (found, remedy): (Phrase, &str) = match version {
        2 | VERSION => return Ok(()),
        swapped if swapped & 0xffff == 0 && swapped != 0 => {
            ("big-endian byte order".into(), "convert it with the program gguf-convert-endian of the package gguf")
        }
        1 => ("version 1 of GGUF".into(), "convert the model again with a newer llama.cpp"),
        other => (format!("version {other} of GGUF").into(), "choose a file of one of these versions"),
    };
    Err(Error::input(subject, found, "version 2 or 3 of GGUF in little-endian byte order", remedy))
}

/// Reads `count` key-value pairs.
async fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    let mut pairs = Vec::with_capacity(count as usize);
    let mut keys = HashSet::new();
    for _ in 0..count {
        let key = cursor.text("a key").await?;
        if key.is_empty() {
            return Err(damaged(cursor.subject, "a key without letters", "a name for every value"));
        }
        let value = read_value(cursor, &key).await?;
        if !keys.insert(key.clone()) {
            return Err(damaged(cursor.subject, format!("the key {key} twice"), "every key once"));
        }
        pairs.push((key, value));
    }
    Ok(Metadata::from_pairs(pairs))
}

/// Reads a value with its type.
async fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value> {
    let subject = cursor.subject;
    let wrong = |found: String, expected: &str| damaged(subject, format!("{found} as {key}"), expected);
    let number = u32::from_le_bytes(cursor.array().await?);
    if number == TEXT {
        return Ok(Value::Text(cursor.text(key).await?));
    }
    let (number, count) = match number {
        LIST => (u32::from_le_bytes(cursor.array().await?), Some(cursor.number().await?)),
        other => (other, None),
    };
    if number == TEXT {
        let count = count.unwrap_or_default();
        cursor.check_count(count, 8, &format!("values of {key}"))?;
        let mut items = Vec::with_capacity(count as usize);
        for _ in 0..count {
            items.push(Value::Text(cursor.text(key).await?));
        }
        return Ok(Value::List(items));
    }
    let Some(size) = size_of_number(number) else {
        let found = if number == LIST { "a list of lists".to_string() } else { format!("a value of type {number}") };
        return Err(wrong(found, "a number, a truth value, a text or a list of such"));
    };
    cursor.check_count(count.unwrap_or(1), size, &format!("values of {key}"))?;
    let bytes = cursor.take(size * count.unwrap_or(1)).await?;
    let items: Option<Vec<Value>> = bytes.chunks_exact(size as usize).map(|bytes| number_of(number, bytes)).collect();
    let mut items = items.ok_or_else(|| wrong("a truth value other than 0 and 1".to_string(), "0 or 1"))?;
    match count {
        None => Ok(items.remove(0)),
        Some(_) => Ok(Value::List(items)),
    }
}

/// Bytes of a number or a truth value of the type with this number. `None` for texts, lists and numbers without a
/// meaning.
fn size_of_number(number: u32) -> Option<u64> {
    match number {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The number or truth value in `bytes`, as many as [`size_of_number`] says. `None` for a truth value other than 0 and 1.
fn number_of(number: u32, bytes: &[u8]) -> Option<Value> {
    Some(match number {
        0 => Value::U8(bytes[0]),
        1 => Value::I8(bytes[0] as i8),
        2 => Value::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
        3 => Value::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
        4 => Value::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
        5 => Value::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
        6 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
        BOOL if bytes[0] > 1 => return None,
        BOOL => Value::Bool(bytes[0] == 1),
        10 => Value::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
        11 => Value::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
        12 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
        _ => return None,
    })
}

/// Reads an entry of the list of tensors, and the offset of the elements from the end of the head.
async fn read_entry(cursor: &mut Cursor<'_>) -> Result<(TensorInfo, u64)> {
    let subject = cursor.subject;
    let name = cursor.text("the name of a tensor").await?;
    if name.is_empty() || name.len() >= MAX_NAME_BYTES {
        let found = format!("a tensor whose name has {} bytes", name.len());
        return Err(damaged(subject, found, "from 1 to 63 bytes"));
    }
    let dimensions = u32::from_le_bytes(cursor.array().await?) as usize;
    if dimensions > MAX_DIMENSIONS {
        return Err(damaged(subject, format!("tensor {name} of {dimensions} dimensions"), "4 at most"));
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let size = cursor.number().await?;
        let size = usize::try_from(size);
        shape.push(
            size.map_err(|_| damaged(subject, format!("tensor {name} with a huge dimension"), "a smaller tensor"))?,
        );
    }
    shape.reverse();
    let id = u32::from_le_bytes(cursor.array().await?);
    let Some(block_type) = BlockType::from_id(id) else {
        let known = BlockType::ALL.map(BlockType::name).join(", ");
        let found = format!("tensor {name} of GGUF's type {id}");
        return Err(Error::input(subject, found, format!("one of {known}"), "choose a file with other types"));
    };
    let offset = cursor.number().await?;
    Ok((TensorInfo { name, shape, block_type }, offset))
}

/// The byte ranges of the tensors of `entries`, which have offsets from the start of `data`. Checks that they follow each
/// other at the alignment and lie inside `data`.
fn place(
    subject: &str,
    entries: Vec<(TensorInfo, u64)>,
    data: Range<u64>,
    alignment: u64,
) -> Result<Vec<StoredTensor>> {
    let mut next = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (info, offset) in entries {
        let TensorInfo { ref name, ref shape, block_type } = info;
        let Some(bytes) = block_type.bytes_of(shape) else {
            let found = format!("tensor {name}, {block_type} of shape {shape:?}");
            let weights = block_type.block_weights();
            let expected = format!("rows of whole blocks of {weights} weights, and a size that fits into 64 bits");
            return Err(damaged(subject, found, &expected));
        };
        if offset != next {
            let found = format!("tensor {name} at offset {offset}");
            return Err(damaged(subject, found, &format!("offset {next}, behind the tensor before it")));
        }
        let end = data.start.checked_add(offset).and_then(|start| start.checked_add(bytes));
        let Some(end) = end.filter(|&end| end <= data.end) else {
            let found = format!("a file of {} bytes, too short for tensor {name}", data.end);
            return Err(damaged(subject, found, "tensors inside the file"));
        };
        next = offset + bytes + padding(bytes, alignment);
        tensors.push(StoredTensor { info, range: end - bytes..end });
    }
    Ok(tensors)
}

fn damaged(subject: &str, found: impl Into<Phrase>, expected: &str) -> Error {
    Error::input(subject, found, expected, DAMAGED)
}

/// Reads a head from its start on, in pieces.
struct Cursor<'a> {
    source: &'a dyn Source,
    subject: &'a str,
    /// The bytes of the file from `start` on that were read.
    buffer: Cow<'a, [u8]>,
    start: u64,
    /// The next byte to take.
    position: u64,
    /// The head ends here at the latest.
    end: u64,
}

impl Cursor<'_> {
    /// Takes the next `count` bytes.
    async fn take(&mut self, count: u64) -> Result<&[u8]> {
        if count > self.end - self.position {
            let found = format!("a head that goes on behind byte {}", self.end);
            return Err(damaged(self.subject, found, "a head that fits into the file and into 256 MB"));
        }
        if self.position + count > self.start + self.buffer.len() as u64 {
            let end = self.end.min(self.position + count.max(self.source.piece()));
            self.buffer = self.source.read(self.position..end).await?;
            self.start = self.position;
        }
        let from = (self.position - self.start) as usize;
        self.position += count;
        Ok(&self.buffer[from..from + count as usize])
    }

    /// Takes `N` bytes.
    async fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64).await?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    /// Takes an unsigned number of 64 bits.
    async fn number(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array().await?))
    }

    /// Takes a text with its length. `what`: what it is, for messages.
    async fn text(&mut self, what: &str) -> Result<String> {
        let length = self.number().await?;
        let subject = self.subject;
        let text = std::str::from_utf8(self.take(length).await?);
        let text = text.map_err(|_| damaged(subject, format!("bytes that are no UTF-8 in {what}"), "a text"))?;
        Ok(text.to_owned())
    }

    /// Checks that `count` items of at least `least` bytes each fit into the rest of the head. `what`: what they are.
    fn check_count(&self, count: u64, least: u64, what: &str) -> Result<()> {
        if count <= (self.end - self.position) / least {
            return Ok(());
        }
        let found = format!("{count} {what} announced in a file of {} bytes", self.source.len());
        Err(damaged(self.subject, found, "as many as fit into the file and into 256 MB"))
    }
}

/// The head of a file with these pairs and tensors, padded to where the elements of the first tensor begin. The elements
/// follow in the same order, each tensor with [`padding`] behind it.
///
/// Errors: `Error::Shape` if [`alignment`] is `None`; if a key is empty; if a list holds a list or values of different types;
/// if a name is empty, has 64 bytes or more, or occurs twice; if a shape has more than 4 dimensions or rows that are not whole blocks.
pub fn head(metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Vec<u8>> {
    let refuse = |detail: String| Error::shape("gguf::head", detail);
    let alignment = alignment(metadata).ok_or_else(|| refuse(format!("{ALIGNMENT_KEY} is no power of two")))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.iter().count() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        if key.is_empty() {
            return Err(refuse("a key without letters".to_string()));
        }
        put_text(&mut bytes, key);
        put_value(&mut bytes, value).ok_or_else(|| refuse(format!("a list of mixed values or of lists as {key}")))?;
    }
    let mut names = HashSet::new();
    let mut offset: u64 = 0;
    for TensorInfo { name, shape, block_type } in tensors {
        let fits = !name.is_empty() && name.len() < MAX_NAME_BYTES && shape.len() <= MAX_DIMENSIONS;
        if !fits || !names.insert(name) {
            return Err(refuse(format!("the name of tensor {name} or its shape {shape:?}")));
        }
        put_text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        bytes.extend(block_type.id().to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        let size = block_type.bytes_of(shape);
        let next = size.and_then(|size| offset.checked_add(size)?.checked_add(padding(size, alignment)));
        offset = next.ok_or_else(|| refuse(format!("tensor {name}, {block_type} of shape {shape:?}")))?;
    }
    let zeros = padding(bytes.len() as u64, alignment);
    bytes.resize(bytes.len() + zeros as usize, 0);
    Ok(bytes)
}

/// Appends a text with its length.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Appends a value with its type. `None` for a list of lists or of values of different types.
fn put_value(bytes: &mut Vec<u8>, value: &Value) -> Option<()> {
    bytes.extend(type_number(value).to_le_bytes());
    let Value::List(items) = value else {
        put_item(bytes, value);
        return Some(());
    };
    let number = items.first().map_or(type_number(&Value::I32(0)), type_number);
    if number == LIST || items.iter().any(|item| type_number(item) != number) {
        return None;
    }
    bytes.extend(number.to_le_bytes());
    bytes.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| put_item(bytes, item));
    Some(())
}

/// Appends a value that is no list, without its type.
fn put_item(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(number) => bytes.push(*number),
        Value::I8(number) => bytes.extend(number.to_le_bytes()),
        Value::U16(number) => bytes.extend(number.to_le_bytes()),
        Value::I16(number) => bytes.extend(number.to_le_bytes()),
        Value::U32(number) => bytes.extend(number.to_le_bytes()),
        Value::I32(number) => bytes.extend(number.to_le_bytes()),
        Value::F32(number) => bytes.extend(number.to_le_bytes()),
        Value::Bool(truth) => bytes.push(u8::from(*truth)),
        Value::Text(text) => put_text(bytes, text),
        Value::U64(number) => bytes.extend(number.to_le_bytes()),
        Value::I64(number) => bytes.extend(number.to_le_bytes()),
        Value::F64(number) => bytes.extend(number.to_le_bytes()),
        Value::List(items) => items.iter().for_each(|item| put_item(bytes, item)),
    }
}

/// The number of the type of a value.
fn type_number(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => BOOL,
        Value::Text(_) => TEXT,
        Value::List(_) => LIST,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}
