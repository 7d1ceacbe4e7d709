//! Writes a quantized copy of a checkpoint, one layer at a time, beside the final name until it is whole.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::floats;
use super::format::PlannedLayer;
use super::plan::{Item, WritePlan};
use super::reader::Checkpoint;
use super::sink::Sink;
use super::source::{Source, pieces};
use crate::error::{Advice, Setting, phrase};
use crate::stored::StoredLinear;
use crate::{Error, Result};

/// A checkpoint being written.
///
/// Hand over the planned layers in model order with [`put_linear`](Self::put_linear), then [`finish`](Self::finish). Everything else
/// is copied from the source as it is. Dropped without `finish`, it leaves nothing behind.
pub struct CheckpointWriter<'a> {
    source: &'a Checkpoint,
    plan: WritePlan,
    output: Output,
    /// How many shards have their header written.
    opened: usize,
    /// The shard and item that come next.
    shard: usize,
    item: usize,
    /// What goes in the place of tensors that are still to come, by name.
    replaced: HashMap<String, Vec<u8>>,
}

impl<'a> CheckpointWriter<'a> {
    /// Starts to write `plan`, which was made for `source`. Nothing is written before the first layer or `finish`.
    ///
    /// Errors if there is no space for the planned bytes.
    pub fn new(source: &'a Checkpoint, plan: WritePlan, sink: Box<dyn Sink>) -> Result<Self> {
        let output = Output { sink, planned: plan.bytes(), committed: false };
        let available = output.sink.available().map_err(|e| output.explain("write", e))?;
        if available.is_some_and(|bytes| bytes < plan.bytes()) {
            return Err(output.no_space());
        }
        Ok(Self { source, plan, output, opened: 0, shard: 0, item: 0, replaced: HashMap::new() })
    }

    /// Has `values` written in the place of the unquantized tensor `name`, in the type that it has.
    ///
    /// Errors: `Error::NotFinite` if they do not fit that type, `Error::Shape` if there are more or fewer than it has; what is
    /// handed over after its turn, or is no tensor to be copied, fails in [`finish`](Self::finish).
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

    /// Writes the next planned layer, and what comes before it in the model.
    ///
    /// Errors: `Error::Shape` if it is not the layer that is due, or was made with other settings than planned.
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

    /// Writes the rest and moves everything to its final place.
    ///
    /// Errors: `Error::Shape` if a planned layer was not handed over.
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

    /// Copies tensors up to the next layer to be quantized, which it returns, or to the end.
    async fn copy_to_next_linear(&mut self) -> Result<Option<PlannedLayer>> {
        while let Some(shard) = self.plan.shards.get(self.shard) {
            if self.opened == self.shard {
                self.output.create(&shard.file).await?;
                self.output.write(&shard.header).await?;
                self.opened += 1;
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
                None => {
                    self.shard += 1;
                    self.item = 0;
                }
            }
        }
        Ok(None)
    }
}

/// The sink, with its errors put into words, and emptied again when dropped before the commit.
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
