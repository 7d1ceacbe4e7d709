//! Writes a quantized copy of a checkpoint, one layer at a time, according to a [`WritePlan`].
//!
//! The files go to a [`Sink`], which keeps them apart from the final place until all are complete.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use safetensors::Dtype;

use super::floats;
use super::format::{Container, Format, PlannedLayer};
use super::plan::{Conversion, Item, WritePlan};
use super::reader::Checkpoint;
use super::sink::Sink;
use super::source::{Source, pieces};
use crate::device::{Device, Recorder};
use crate::error::{Advice, Setting, phrase};
use crate::family::LinearSpec;
use crate::ops::grid::{self, GridSpec, Search};
use crate::ops::rtn;
use crate::stored::{QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// A checkpoint that is being written.
///
/// Hand over the planned layers in model order with [`put_linear`](Self::put_linear), then call
/// [`finish`](Self::finish). All other tensors and files come from the source. Tensors given to
/// [`put_tensor`](Self::put_tensor) have new values, weights in low precision become ordinary floats, and the format may
/// convert others. A writer that is dropped without `finish` removes what it has written.
pub struct CheckpointWriter<'a> {
    source: &'a Checkpoint,
    plan: WritePlan,
    output: Output,
    /// Number of files whose head was written.
    heads_written: usize,
    /// Index of the current file, and of the next item in it.
    file: usize,
    item: usize,
    /// New contents of unquantized tensors that are not written yet, by tensor name in the source.
    replaced: HashMap<String, Vec<u8>>,
}

impl<'a> CheckpointWriter<'a> {
    /// Starts a checkpoint according to `plan`, which was made for `source`. Nothing is written before the first layer
    /// or `finish`.
    ///
    /// Errors: `Error::Input` if the sink has no room for the planned bytes.
    pub fn new(source: &'a Checkpoint, plan: WritePlan, sink: Box<dyn Sink>) -> Result<Self> {
        let alignment = plan.container().alignment();
        let output = Output { sink, planned: plan.bytes(), alignment, position: 0, committed: false };
        let available = output.sink.available().map_err(|e| output.explain("write", e))?;
        if available.is_some_and(|bytes| bytes < plan.bytes()) {
            return Err(output.no_space());
        }
        Ok(Self { source, plan, output, heads_written: 0, file: 0, item: 0, replaced: HashMap::new() })
    }

    /// The grid on which the plan wants the layer `name`. `None` if it is not to be quantized.
    pub fn grid(&self, name: &str) -> Option<GridSpec> {
        self.plan.grid(name)
    }

    /// Replaces the values of the unquantized tensor `name` of the source. They are converted and encoded as those of the
    /// source would be. Call this before the layer that follows the tensor in the model is handed over.
    ///
    /// Errors: `Error::NotFinite` if a value does not fit the element type; `Error::Shape` if the number of values
    /// differs from that of the tensor, if the tensor was written already, or if it is quantized or not stored.
    pub fn put_tensor(&mut self, name: String, values: &[f32]) -> Result<()> {
        let shape = self.source.shape(&name)?;
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::shape("put_tensor", format!("{} values for {name} of shape {shape:?}", values.len())));
        }
        let (bytes, dtype) = match self.remaining_items().find(|item| item.source() == Some(&name)) {
            Some(Item::Convert { conversion: Conversion { change, dtype }, .. }) => {
                (floats::encode(&change.apply(values.to_vec()), *dtype), *dtype)
            }
            Some(_) => {
                let dtype = self.source.dtype(&name)?;
                (floats::encode(values, dtype), dtype)
            }
            None => {
                let detail = format!("new values of {name} came too late, or it is quantized or not stored");
                return Err(Error::shape("put_tensor", detail));
            }
        };
        let bytes = bytes.ok_or_else(|| Error::NotFinite {
            place: format!("{name} in {dtype}"),
            remedy: phrase!["use another ", Setting::Method],
        })?;
        self.replaced.insert(name, bytes);
        Ok(())
    }

    /// The items that are not written yet, in order.
    fn remaining_items(&self) -> impl Iterator<Item = &Item> {
        let files = self.plan.files.get(self.file..).unwrap_or_default();
        files.iter().flat_map(|file| &file.items).skip(self.item)
    }

    /// Writes the next planned layer, after the tensors that come before it in the model.
    ///
    /// Errors: `Error::Shape` if it is not the next planned layer, or if its grid is not the planned one;
    /// `Error::NotFinite` if a number does not fit the format; errors of reading and writing.
    pub async fn put_linear(&mut self, linear: &StoredLinear) -> Result<()> {
        match self.write_to_next_linear().await? {
            Some(due) => {
                due.check(linear)?;
                for part in &self.plan.format.pack(&due, linear)? {
                    self.output.write(part).await?;
                    self.output.align().await?;
                }
                self.item += 1;
                Ok(())
            }
            None => Err(Error::shape("put_linear", format!("{} after the last planned layer", linear.name()))),
        }
    }

    /// Writes the remaining tensors and, into a directory, the documents and the sidecar files. Moves everything to its
    /// final place.
    ///
    /// Errors: `Error::Shape` if a planned layer was not handed over; errors of reading and writing.
    pub async fn finish(mut self) -> Result<()> {
        if let Some(due) = self.write_to_next_linear().await? {
            return Err(Error::shape("finish", format!("layer {} was not written", due.spec.name)));
        }
        if let Container::Directory { .. } = self.plan.container() {
            self.write_documents().await?;
        }
        self.output.commit().await
    }

    /// Writes the documents of the format and the other files of the model.
    async fn write_documents(&mut self) -> Result<()> {
        for (name, text) in &self.plan.documents {
            self.output.create(name).await?;
            self.output.write(text.as_bytes()).await?;
        }
        for file in self.source.sidecars() {
            self.output.create(file.name()).await?;
            self.output.copy(file, 0..file.len()).await?;
        }
        Ok(())
    }

    /// Writes tensors up to the next layer to be quantized, and returns that layer, or `None` after the last item.
    async fn write_to_next_linear(&mut self) -> Result<Option<PlannedLayer>> {
        while let Some(file) = self.plan.files.get(self.file) {
            if self.heads_written == self.file {
                self.output.create(&file.name).await?;
                self.output.write(&file.head).await?;
                self.heads_written += 1;
            }
            match file.items.get(self.item) {
                Some(Item::Linear(due)) => return Ok(Some(due.clone())),
                Some(item) => {
                    match item.source().and_then(|name| self.replaced.remove(name)) {
                        Some(bytes) => self.output.write(&bytes).await?,
                        None => write_item(&mut self.output, self.source, self.plan.format, item).await?,
                    }
                    self.output.align().await?;
                    self.item += 1;
                }
                None => {
                    self.file += 1;
                    self.item = 0;
                }
            }
        }
        Ok(None)
    }
}

/// Writes an item other than a quantized layer.
async fn write_item(output: &mut Output, source: &Checkpoint, format: &dyn Format, item: &Item) -> Result<()> {
    match item {
        Item::Copy { file, range, .. } => output.copy(source.file(*file), range.clone()).await,
        Item::Convert { name, conversion } => convert(output, source, name, conversion).await,
        Item::Round { name, layer } => round(output, source, format, (name, layer)).await,
        Item::Add(bytes) => output.write(bytes).await,
        Item::Linear(layer) => Err(Error::shape("write_item", format!("{} is quantized", layer.spec.name))),
    }
}

/// Writes the tensor `name` of the source, converted: in pieces of rows, if its rows lie in the file as they are used and
/// change one by one.
async fn convert(output: &mut Output, source: &Checkpoint, name: &str, conversion: &Conversion) -> Result<()> {
    let shape = source.shape(name)?;
    let write = async |output: &mut Output, values: Vec<f32>| {
        let values = conversion.change.apply(values);
        output.write(&encoded(name, &values, conversion.dtype)?).await
    };
    match shape {
        [rows, inner @ ..] if conversion.change.is_by_row() && source.is_plain(name) => {
            let width: usize = inner.iter().product();
            let count = (PIECE / width.max(1)).max(1);
            for first in (0..*rows).step_by(count) {
                let piece = first..(first + count).min(*rows);
                write(output, source.read_rows(name, piece).await?).await?;
            }
            Ok(())
        }
        _ => write(output, source.read(name).await?).await,
    }
}

/// Writes the matrix `name` of the source, rounded to the grid of `layer` in pieces of rows.
async fn round(
    output: &mut Output,
    source: &Checkpoint,
    format: &dyn Format,
    (name, layer): (&str, &PlannedLayer),
) -> Result<()> {
    let LinearSpec { rows, columns, .. } = layer.spec;
    let count = (PIECE / columns.max(1)).max(1);
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for first in (0..rows).step_by(count) {
        let piece = first..(first + count).min(rows);
        let rounded = rounded(layer, [piece.len(), columns], source.read_rows(name, piece).await?).await?;
        let packed = format.pack(layer, &StoredLinear::Codes(rounded))?;
        parts.resize(packed.len(), Vec::new());
        parts.iter_mut().zip(packed).for_each(|(part, packed)| part.extend(packed));
    }
    for part in &parts {
        output.write(part).await?;
        output.align().await?;
    }
    Ok(())
}

/// Some rows of a matrix, `[rows, columns]`, rounded to the grid of `layer`, each number by itself.
async fn rounded(layer: &PlannedLayer, [rows, columns]: [usize; 2], values: Vec<f32>) -> Result<QuantizedLinear> {
    let spec = layer.grid;
    let mut rec = Recorder::new(&Device::Cpu);
    let weight = rec.upload(&[rows, columns], values)?;
    let grid = grid::search(&mut rec, &weight, None, &spec, Search::Mse)?;
    let (codes, _) = rtn::round(&mut rec, &weight, &grid, &spec)?;
    let codes: Vec<u32> = rec.read(&codes).await?;
    let units = match &grid.units {
        Some(units) => rec.read(units).await?,
        None => Vec::new(),
    };
    Ok(QuantizedLinear {
        name: layer.spec.name.clone(),
        rows,
        columns,
        grid: spec,
        codes: codes.into_iter().map(|code| code as u8).collect(),
        scales: rec.read(&grid.scales).await?,
        zeros: rec.read(&grid.zeros).await?,
        units,
    })
}

/// Elements of a tensor that are converted at a time.
const PIECE: usize = 1 << 21;

/// The weight `name` as little-endian bytes of `dtype`. Errors: `Error::NotFinite` if a value is too large for `dtype`.
fn encoded(name: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    floats::encode(values, dtype).ok_or_else(|| Error::NotFinite {
        place: format!("{name} in {dtype}"),
        remedy: "set \"dtype\" to \"float32\" in config.json".into(),
    })
}

/// The sink of the writer. Turns its errors into messages, and removes what was written if it is dropped before the
/// commit.
struct Output {
    sink: Box<dyn Sink>,
    planned: u64,
    /// Every tensor starts at a multiple of this many bytes.
    alignment: u64,
    /// Bytes of the current file that were written.
    position: u64,
    committed: bool,
}

impl Output {
    async fn create(&mut self, file: &str) -> Result<()> {
        self.position = 0;
        self.sink.create(file).await.map_err(|e| self.explain("create a file in", e))
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.position += chunk.len() as u64;
        self.sink.write(chunk).await.map_err(|e| self.explain("write to", e))
    }

    /// Writes zeros up to the start of the next tensor.
    async fn align(&mut self) -> Result<()> {
        let gap = self.position.next_multiple_of(self.alignment) - self.position;
        if gap == 0 { Ok(()) } else { self.write(&vec![0; gap as usize]).await }
    }

    async fn copy(&mut self, source: &dyn Source, range: Range<u64>) -> Result<()> {
        for piece in pieces(range, source.piece()) {
            let chunk = source.read(piece).await?;
            self.write(&chunk).await?;
        }
        Ok(())
    }

    async fn commit(mut self) -> Result<()> {
        self.sink.commit().await.map_err(|e| self.explain("complete", e))?;
        self.committed = true;
        Ok(())
    }

    fn explain(&self, action: &'static str, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.no_space(),
            _ => {
                let remedy = phrase!["check its permissions, or choose another ", Setting::Out];
                Error::Io { path: PathBuf::from(self.sink.name()), action, source, remedy }
            }
        }
    }

    fn no_space(&self) -> Error {
        Error::input(
            self.sink.name(),
            "no space left",
            format!("room for {:.1} MB", self.planned as f64 / 1e6),
            Advice::MoreRoom,
        )
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.committed {
            self.sink.abort();
        }
    }
}
