//! Keeps the records of finished blocks, so that a later run can continue after them and write the same bytes.
//!
//! A record holds the outputs and reports of a block, not its hidden states. To continue, both streams are taken
//! through the recorded blocks again. This needs no disk space for hidden states, and no statistics and no rounding are
//! computed. `run` writes and reads the records; `study::resume` decides whether a journal fits a run.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::ops::grid::GridSpec;
use crate::record::Phase;
use crate::record::{BlockReport, LayerReport};
use crate::stored::{DenseLinear, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// A store for the records of the blocks of one run.
pub trait Journal {
    /// The number of blocks that have a record. They are the first blocks of the model.
    fn blocks(&self) -> usize;

    /// Reads the record of block number `block`, which is below [`Journal::blocks`].
    fn read(&mut self, block: usize) -> Result<BlockRecord>;

    /// Stores the record of the next block.
    fn write(&mut self, record: &BlockRecord) -> Result<()>;
}

/// The record of a finished block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRecord {
    /// The error of the quantized stream after the block.
    pub block: BlockReport,
    /// The reports of its layers, in execution order.
    pub layers: Vec<LayerReport>,
    /// Seconds per phase of the run so far, including earlier runs that it continues.
    pub seconds: BTreeMap<Phase, f64>,
    /// New values of norms and biases, with the names of the tensors.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// The quantized layers, in model order.
    pub linears: Vec<StoredLinear>,
    /// The weights that the quantized stream passed through, by module path, `[rows, columns]` each. Only those that
    /// differ from the dequantized stored layer are listed.
    pub stream: Vec<(String, Vec<f32>)>,
}

/// The contents of a record except its arrays.
#[derive(Serialize, Deserialize)]
struct Header {
    block: BlockReport,
    layers: Vec<LayerReport>,
    seconds: BTreeMap<Phase, f64>,
    tensors: Vec<String>,
    linears: Vec<LinearHeader>,
    stream: Vec<String>,
}

/// A quantized layer without its arrays.
#[derive(Serialize, Deserialize)]
struct LinearHeader {
    name: String,
    rows: usize,
    columns: usize,
    /// `None` for a layer that is stored as plain numbers.
    grid: Option<GridSpec>,
}

/// The key of the header in the metadata of a file.
const HEADER: &str = "record";

impl BlockRecord {
    /// The weight that the quantized stream passes through in the layer `name`, `[rows, columns]`. `None` if the layer
    /// keeps its original weight.
    pub fn stream_weight(&self, name: &str) -> Option<Vec<f32>> {
        let kept = self.stream.iter().find(|(kept, _)| kept == name).map(|(_, weight)| weight.clone());
        kept.or_else(|| self.linears.iter().find(|linear| linear.name() == name).map(StoredLinear::dequantize))
    }

    /// Encodes the record as a file in the safetensors format. Errors: `Error::Shape` if it cannot be encoded.
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
                    for (kind, numbers) in [("scales", &codes.scales), ("zeros", &codes.zeros), ("units", &codes.units)]
                    {
                        arrays.push((format!("{kind} {name}"), Dtype::F32, bytemuck::cast_slice(numbers)));
                    }
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

    /// Decodes the bytes that [`to_bytes`](Self::to_bytes) made. Errors: a phrase that says what was found instead.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let header = metadata.metadata().as_ref().and_then(|all| all.get(HEADER));
        let header: Header =
            serde_json::from_str(header.ok_or("no record in its header")?).map_err(|error| error.to_string())?;
        let arrays = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        // Each array may be used once, so a file cannot ask for more memory than it has bytes.
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
                Some(grid) => StoredLinear::Codes(QuantizedLinear {
                    codes: bytes("codes", &name, Dtype::U8)?.to_vec(),
                    scales: floats("scales", &name)?,
                    zeros: floats("zeros", &name)?,
                    units: floats("units", &name)?,
                    name,
                    rows,
                    columns,
                    grid,
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
            StoredLinear::Codes(codes) => Some(codes.grid),
        };
        Self { name: linear.name().to_string(), rows, columns, grid }
    }
}

/// The error of a record that cannot be encoded.
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

    /// A directory with one file per block. A file appears when it is complete.
    #[derive(Debug)]
    pub struct DirectoryJournal {
        directory: PathBuf,
        blocks: usize,
    }

    impl DirectoryJournal {
        /// Opens the journal in `directory`, which must exist, and counts its records.
        pub fn open(directory: &Path) -> Self {
            let mut journal = Self { directory: directory.to_owned(), blocks: 0 };
            while journal.file(journal.blocks).is_file() {
                journal.blocks += 1;
            }
            journal
        }

        /// The path of the record of a block.
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
                // If this fails, a partial file is left, which does no harm. The error to report is the first one.
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
