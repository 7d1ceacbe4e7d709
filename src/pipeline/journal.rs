//! What a run keeps of the blocks that it has done, so that a later run can go on from there to the same bytes.
//!
//! A record has what the block handed over and reported, not the hidden states: those are made again, by taking both streams
//! through the recorded blocks, which costs no statistics and no rounding, and no disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::record::Phase;
use crate::record::{BlockReport, LayerReport};
use crate::stored::{DenseLinear, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// Keeps the records of a run's blocks.
pub trait Journal {
    /// How many of the first blocks have a record.
    fn blocks(&self) -> usize;

    /// The record of a block before that.
    fn read(&mut self, block: usize) -> Result<BlockRecord>;

    /// Keeps the record of the next block.
    fn write(&mut self, record: &BlockRecord) -> Result<()>;
}

/// A block that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRecord {
    /// The state of the streams after it.
    pub block: BlockReport,
    /// Its layers, in execution order.
    pub layers: Vec<LayerReport>,
    /// Seconds per phase of the run so far.
    pub seconds: BTreeMap<Phase, f64>,
    /// New values of norms and biases, by tensor name.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// Its quantized layers, in model order.
    pub linears: Vec<StoredLinear>,
    /// By module path, the weights that the quantized stream went through where they are not what the stored layer dequantizes to.
    pub stream: Vec<(String, Vec<f32>)>,
}

/// Everything of a record but its arrays.
#[derive(Serialize, Deserialize)]
struct Header {
    block: BlockReport,
    layers: Vec<LayerReport>,
    seconds: BTreeMap<Phase, f64>,
    tensors: Vec<String>,
    linears: Vec<LinearHeader>,
    stream: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct LinearHeader {
    name: String,
    rows: usize,
    columns: usize,
    /// `None` for a weight without codes.
    grid: Option<GridHeader>,
}

#[derive(Serialize, Deserialize)]
struct GridHeader {
    bits: u32,
    group_size: usize,
    symmetric: bool,
}

/// The key of the header among a file's metadata.
const HEADER: &str = "record";

impl BlockRecord {
    /// The weight that the quantized stream goes through in the layer `name`, `[rows, columns]`; `None` if it kept its own.
    pub fn stream_weight(&self, name: &str) -> Option<Vec<f32>> {
        let kept = self.stream.iter().find(|(kept, _)| kept == name).map(|(_, weight)| weight.clone());
        kept.or_else(|| self.linears.iter().find(|linear| linear.name() == name).map(StoredLinear::dequantize))
    }

    /// As a file in the layout of safetensors.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            block: self.block.clone(),
            layers: self.layers.clone(),
            seconds: self.seconds.clone(),
            tensors: self.tensors.iter().map(|(name, _)| name.clone()).collect(),
            linears: self.linears.iter().map(LinearHeader::of).collect(),
            stream: self.stream.iter().map(|(name, _)| name.clone()).collect(),
        };
        let header = serde_json::to_string(&header).map_err(|error| unwritable(&error))?;
        let mut arrays: Vec<(String, Dtype, &[u8])> = Vec::new();
        for (name, values) in &self.tensors {
            arrays.push((format!("tensor {name}"), Dtype::F32, bytemuck::cast_slice(values)));
        }
        for linear in &self.linears {
            let name = linear.name();
            match linear {
                StoredLinear::Dense(dense) => {
                    arrays.push((format!("dense {name}"), Dtype::F32, bytemuck::cast_slice(&dense.weight)));
                }
                StoredLinear::Codes(codes) => {
                    arrays.push((format!("codes {name}"), Dtype::U8, &codes.codes));
                    arrays.push((format!("zeros {name}"), Dtype::U8, &codes.zeros));
                    arrays.push((format!("scales {name}"), Dtype::F16, bytemuck::cast_slice(&codes.scales)));
                }
            }
        }
        for (name, values) in &self.stream {
            arrays.push((format!("stream {name}"), Dtype::F32, bytemuck::cast_slice(values)));
        }
        let views = arrays.iter().map(|(name, dtype, bytes)| {
            let count = bytes.len() * 8 / dtype.bitsize();
            TensorView::new(*dtype, vec![count], bytes).map(|view| (name, view))
        });
        let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|error| unwritable(&error))?;
        let metadata = HashMap::from([(HEADER.to_string(), header)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| unwritable(&error))
    }

    /// What [`to_bytes`](Self::to_bytes) made, or why it is not that, as a phrase.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let header = metadata.metadata().as_ref().and_then(|all| all.get(HEADER));
        let header: Header =
            serde_json::from_str(header.ok_or("no record in its header")?).map_err(|error| error.to_string())?;
        let arrays = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        // Every array belongs to one place, so that a file cannot ask for more memory than it has bytes.
        let taken = RefCell::new(HashSet::new());
        let bytes = |kind: &str, name: &str, dtype: Dtype| {
            let array = format!("{kind} {name}");
            let view = arrays.tensor(&array).map_err(|error| error.to_string())?;
            if !taken.borrow_mut().insert(array) {
                return Err(format!("{kind} {name} twice"));
            }
            if view.dtype() == dtype { Ok(view.data()) } else { Err(format!("{kind} {name} as {}", view.dtype())) }
        };
        let floats = |kind: &str, name: &str| -> Result<Vec<f32>, String> {
            Ok(bytemuck::pod_collect_to_vec(bytes(kind, name, Dtype::F32)?))
        };
        let named = |kind: &str, names: Vec<String>| -> Result<Vec<(String, Vec<f32>)>, String> {
            names.into_iter().map(|name| Ok((name.clone(), floats(kind, &name)?))).collect()
        };
        let linear = |header: LinearHeader| -> Result<StoredLinear, String> {
            let LinearHeader { name, rows, columns, grid } = header;
            let linear = match grid {
                None => StoredLinear::Dense(DenseLinear { weight: floats("dense", &name)?, name, rows, columns }),
                Some(GridHeader { bits, group_size, symmetric }) => StoredLinear::Codes(QuantizedLinear {
                    codes: bytes("codes", &name, Dtype::U8)?.to_vec(),
                    scales: bytemuck::pod_collect_to_vec::<u8, f16>(bytes("scales", &name, Dtype::F16)?),
                    zeros: bytes("zeros", &name, Dtype::U8)?.to_vec(),
                    name,
                    rows,
                    columns,
                    bits,
                    group_size,
                    symmetric,
                }),
            };
            if linear.is_whole() { Ok(linear) } else { Err(format!("{} in arrays of other sizes", linear.name())) }
        };
        Ok(Self {
            block: header.block,
            layers: header.layers,
            seconds: header.seconds,
            tensors: named("tensor", header.tensors)?,
            linears: header.linears.into_iter().map(linear).collect::<Result<_, _>>()?,
            stream: named("stream", header.stream)?,
        })
    }
}

impl LinearHeader {
    fn of(linear: &StoredLinear) -> Self {
        let [rows, columns] = linear.shape();
        let grid = match linear {
            StoredLinear::Dense(_) => None,
            &StoredLinear::Codes(QuantizedLinear { bits, group_size, symmetric, .. }) => {
                Some(GridHeader { bits, group_size, symmetric })
            }
        };
        Self { name: linear.name().to_string(), rows, columns, grid }
    }
}

fn unwritable(error: &dyn std::fmt::Display) -> Error {
    Error::shape("BlockRecord::to_bytes", error.to_string())
}

#[cfg(not(target_arch = "wasm32"))]
pub use native::DirectoryJournal;

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::fs::{self, File};
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::error::{Phrase, Setting, phrase};

    /// A file per block in a directory, each whole or not there.
    #[derive(Debug)]
    pub struct DirectoryJournal {
        directory: PathBuf,
        blocks: usize,
    }

    impl DirectoryJournal {
        /// The records in `directory`, which exists.
        pub fn open(directory: &Path) -> Self {
            let mut journal = Self { directory: directory.to_owned(), blocks: 0 };
            while journal.file(journal.blocks).is_file() {
                journal.blocks += 1;
            }
            journal
        }

        fn file(&self, block: usize) -> PathBuf {
            self.directory.join(format!("block-{block:05}.safetensors"))
        }
    }

    impl Journal for DirectoryJournal {
        fn blocks(&self) -> usize {
            self.blocks
        }

        fn read(&mut self, block: usize) -> Result<BlockRecord> {
            let path = self.file(block);
            let bytes = fs::read(&path).map_err(|source| Error::Io {
                path: path.clone(),
                action: "read",
                source,
                remedy: start_again(),
            })?;
            let record = BlockRecord::from_bytes(&bytes).and_then(|record| match record.block.block {
                found if found == block => Ok(record),
                found => Err(format!("block {found}")),
            });
            record.map_err(|found| {
                let expected = format!("the record of block {block}");
                Error::input(path.display().to_string(), found, expected, start_again())
            })
        }

        fn write(&mut self, record: &BlockRecord) -> Result<()> {
            let path = self.file(self.blocks);
            let bytes = record.to_bytes()?;
            let temporary = path.with_extension("part");
            let write = || -> std::io::Result<()> {
                let mut file = File::create(&temporary)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&temporary, &path)
            };
            write().map_err(|source| {
                // Nothing is lost with it, and the first error is the one to report.
                let _ = fs::remove_file(&temporary);
                let remedy = phrase!["make room, then add ", Setting::Journal, " to go on"];
                Error::Io { path: path.clone(), action: "write", source, remedy }
            })?;
            self.blocks += 1;
            Ok(())
        }
    }

    fn start_again() -> Phrase {
        phrase!["leave ", Setting::Journal, " out to start again"]
    }
}
