//! Reads the header of a safetensors file. Every value in it is checked before it is used, because files may be damaged
//! or hostile.

use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::source::Source;
use crate::error::Phrase;
use crate::{Error, Result};

/// Greatest header length in bytes that the safetensors library accepts.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The entry of one tensor in the header of a weight file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Byte range of the elements, from the start of the file.
    pub range: Range<u64>,
}

/// Reads and checks the header of `source`. `subject` names the file in error messages. The entries are sorted by their
/// offset.
///
/// Errors: `Error::Input` if the file is shorter than the header says; if the header is longer than the file or than
/// 100 MB, or is not JSON; if it names a tensor twice; or if byte ranges leave the file, overlap, or do not match
/// element type and shape. Errors of reading `source` are passed on.
pub async fn read_header(source: &dyn Source, subject: &str) -> Result<Vec<TensorEntry>> {
    let total = source.len();
    if total < 8 {
        return Err(damaged(subject, format!("a file of {total} bytes"), "at least the 8 bytes of a header length"));
    }
    let prefix = source.read(0..8).await?;
    let length = u64::from_le_bytes(prefix[..8].try_into().expect("eight bytes were asked for"));
    if length > MAX_HEADER_BYTES || length > total - 8 {
        let found = format!("a header of {length} bytes announced in a file of {total} bytes");
        return Err(damaged(subject, found, "a header that fits into the file and into 100 MB"));
    }
    let data_start = 8 + length;
    let bytes = source.read(8..data_start).await?;
    let header: RawHeader = serde_json::from_slice(&bytes)
        .map_err(|e| damaged(subject, format!("a header that cannot be read ({e})"), "a safetensors header"))?;
    let mut entries = Vec::with_capacity(header.0.len());
    for (name, raw) in header.0 {
        entries.push(check_entry(subject, name, raw, data_start, total)?);
    }
    check_disjoint(subject, &mut entries)?;
    Ok(entries)
}

/// Size in bytes of a tensor of this type and shape. `None` if it is not a whole number of bytes or does not fit into
/// 64 bits.
pub(super) fn byte_size(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Checks one entry against the file: `data_start` is the position of the first element, `total` the length of the
/// file.
fn check_entry(subject: &str, name: String, raw: RawEntry, data_start: u64, total: u64) -> Result<TensorEntry> {
    let [begin, end] = raw.data_offsets;
    let (dtype, shape) = (raw.dtype, raw.shape);
    if begin > end || end > total - data_start {
        let found = format!("tensor {name} at bytes {begin}..{end} of {}", total - data_start);
        return Err(damaged(subject, found, "tensors inside the file"));
    }
    if byte_size(dtype, &shape) != Some(end - begin) {
        let found = format!("{} bytes for tensor {name}, {dtype} of shape {shape:?}", end - begin);
        return Err(damaged(subject, found, "as many bytes as type and shape take"));
    }
    let narrow: Result<Vec<usize>, _> = shape.iter().map(|&n| usize::try_from(n)).collect();
    let shape =
        narrow.map_err(|_| damaged(subject, format!("tensor {name} of shape {shape:?}"), "a smaller tensor"))?;
    Ok(TensorEntry { name, dtype, shape, range: data_start + begin..data_start + end })
}

/// Sorts the entries by offset. Refuses names that occur twice and ranges that overlap.
fn check_disjoint(subject: &str, entries: &mut [TensorEntry]) -> Result<()> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(damaged(subject, format!("tensor {} twice", pair[0].name), "every name once"));
    }
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        let found = format!("tensors {} and {} in the same bytes", pair[0].name, pair[1].name);
        return Err(damaged(subject, found, "tensors that do not overlap"));
    }
    Ok(())
}

fn damaged(subject: &str, found: impl Into<Phrase>, expected: &str) -> Error {
    Error::input(subject, found, expected, "download the file again; it is truncated or damaged")
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The entries in file order. A map would silently drop the first of two entries with the same name.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map.next_value()?;
                        entries.push((name, entry));
                    }
                }
                Ok(RawHeader(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
