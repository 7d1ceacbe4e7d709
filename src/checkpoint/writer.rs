//! Writes a quantized copy of a checkpoint, one layer at a time, according to a [`WritePlan`].
//!
//! The files go to a [`Sink`], which keeps them apart from the final place until all are complete.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use safetensors::Dtype;

use super::floats;
use super::format::PlannedLayer;
use super::plan::{Item, WritePlan};
use super::reader::Checkpoint;
use super::sink::Sink;
use super::source::{Source, pieces};
use crate::error::{Advice, Setting, phrase};
use crate::stored::StoredLinear;
use crate::{Error, Result};

/// A checkpoint that is being written.
///
/// Hand over the planned layers in model order with [`put_linear`](Self::put_linear), then call
/// [`finish`](Self::finish). All other tensors and files are copied from the source unchanged, except those given to
/// [`put_tensor`](Self::put_tensor) and weights in low precision, which become ordinary floats. A writer that is dropped without `finish` removes what it has written.
pub struct CheckpointWriter<'a> {
    source: &'a Checkpoint,
    plan: WritePlan,
    output: Output,
    /// Number of shards whose header was written.
    headers_written: usize,
    /// Index of the current shard, and of the next item in it.
    shard: usize,
    item: usize,
    /// New contents of unquantized tensors that are not written yet, by tensor name.
    replaced: HashMap<String, Vec<u8>>,
}

impl<'a> CheckpointWriter<'a> {
    /// Starts a checkpoint according to `plan`, which was made for `source`. Nothing is written before the first layer
    /// or `finish`.
    ///
    /// Errors: `Error::Input` if the sink has no room for the planned bytes.
    pub fn new(source: &'a Checkpoint, plan: WritePlan, sink: Box<dyn Sink>) -> Result<Self> {
        let output = Output { sink, planned: plan.bytes(), committed: false };
        let available = output.sink.available().map_err(|e| output.explain("write", e))?;
        if available.is_some_and(|bytes| bytes < plan.bytes()) {
            return Err(output.no_space());
        }
        Ok(Self { source, plan, output, headers_written: 0, shard: 0, item: 0, replaced: HashMap::new() })
    }

    /// Replaces the values of the unquantized tensor `name`. They are written in the element type that the tensor has
    /// in the source. Call this before the layer that follows the tensor in the model is handed over.
    ///
    /// Errors: `Error::NotFinite` if a value does not fit the element type; `Error::Shape` if the number of values
    /// differs from that of the tensor. Values that come too late, or are meant for a tensor that is not copied, make
    /// [`finish`](Self::finish) fail.
    pub fn put_tensor(&mut self, name: String, values: &[f32]) -> Result<()> {
        let (dtype, shape) = (self.source.dtype(&name)?, self.source.shape(&name)?);
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::shape("put_tensor", format!("{} values for {name} of shape {shape:?}", values.len())));
        }
        let bytes = floats::encode(values, dtype).ok_or_else(|| Error::NotFinite {
            place: format!("{name} in {dtype}"),
            remedy: phrase!["use another ", Setting::Method],
        })?;
        self.replaced.insert(name, bytes);
        Ok(())
    }

    /// Writes the next planned layer, after the tensors that come before it in the model.
    ///
    /// Errors: `Error::Shape` if it is not the next planned layer, or if its grid is not the planned one;
    /// `Error::NotFinite` if a number does not fit the format; errors of reading and writing.
    pub async fn put_linear(&mut self, linear: &StoredLinear) -> Result<()> {
        match self.copy_to_next_linear().await? {
            Some(due) => {
                due.check(linear)?;
                for part in &self.plan.format.pack(&due, linear)? {
                    self.output.write(part).await?;
                }
                self.item += 1;
                Ok(())
            }
            None => Err(Error::shape("put_linear", format!("{} after the last planned layer", linear.name()))),
        }
    }

    /// Writes the remaining tensors, the documents and the sidecar files, and moves everything to its final place.
    ///
    /// Errors: `Error::Shape` if a planned layer was not handed over, or if values of [`put_tensor`](Self::put_tensor)
    /// were not used; errors of reading and writing.
    pub async fn finish(mut self) -> Result<()> {
        if let Some(due) = self.copy_to_next_linear().await? {
            return Err(Error::shape("finish", format!("layer {} was not written", due.spec.name)));
        }
        if let Some(name) = self.replaced.keys().min() {
            return Err(Error::shape("finish", format!("new values of {name} came too late, or it is quantized")));
        }
        for (name, text) in &self.plan.documents {
            self.output.create(name).await?;
            self.output.write(text.as_bytes()).await?;
        }
        for file in self.source.sidecars() {
            self.output.create(file.name()).await?;
            self.output.copy(file, 0..file.len()).await?;
        }
        self.output.commit().await
    }

    /// Copies tensors up to the next layer to be quantized, and returns that layer, or `None` after the last item.
    async fn copy_to_next_linear(&mut self) -> Result<Option<PlannedLayer>> {
        while let Some(shard) = self.plan.shards.get(self.shard) {
            if self.headers_written == self.shard {
                self.output.create(&shard.file).await?;
                self.output.write(&shard.header).await?;
                self.headers_written += 1;
            }
            match shard.items.get(self.item) {
                Some(Item::Linear(due)) => return Ok(Some(due.clone())),
                Some(Item::Copy { name, file, range }) => {
                    match self.replaced.remove(name) {
                        Some(bytes) => self.output.write(&bytes).await?,
                        None => self.output.copy(self.source.file(*file), range.clone()).await?,
                    }
                    self.item += 1;
                }
                Some(Item::Widen { name, dtype }) => {
                    let values = self.source.read(name).await?;
                    self.output.write(&encoded(name, &values, *dtype)?).await?;
                    self.item += 1;
                }
                None => {
                    self.shard += 1;
                    self.item = 0;
                }
            }
        }
        Ok(None)
    }
}

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
    committed: bool,
}

impl Output {
    async fn create(&mut self, file: &str) -> Result<()> {
        self.sink.create(file).await.map_err(|e| self.explain("create a file in", e))
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.sink.write(chunk).await.map_err(|e| self.explain("write to", e))
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
