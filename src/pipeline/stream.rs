//! Hidden states, chunk by chunk, wherever the plan puts them: on the device, in host memory or in a file.
//!
//! Between two groups a chunk is two arrays, the residual stream and what the next group's linears read. Only the chunk in hand
//! need be on the device.

use std::ops::Deref;

use scratch::Scratch;

use crate::Result;
use crate::device::{Place, Recorder};
use crate::model::block::{Block, Lane, Stage};
use crate::model::network::FinalNorm;
use crate::tensor::Tensor;

/// The hidden states of all chunks.
#[derive(Default)]
pub(super) struct Stream {
    chunks: Vec<Chunk>,
    shelf: Shelf,
    /// Elements of a chunk's two arrays together at most.
    elements: usize,
}

/// One chunk between two groups.
#[derive(Default)]
struct Chunk {
    hidden: Slot,
    input: Slot,
}

/// An array, or none.
#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    Device(Tensor),
    Host(Vec<usize>, Vec<f32>),
    File(Vec<usize>),
}

/// Where slots are kept.
#[derive(Default)]
enum Shelf {
    #[default]
    Device,
    Host,
    File(Scratch),
}

/// An array that is on the device, or was brought there to be read.
pub(super) enum Held<'a> {
    Here(&'a Tensor),
    Brought(Tensor),
}

impl Deref for Held<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Here(tensor) => tensor,
            Self::Brought(tensor) => tensor,
        }
    }
}

/// The two arrays of a chunk.
#[derive(Clone, Copy)]
enum Part {
    Hidden,
    Input,
}

impl Stream {
    /// No chunks yet. `elements`: of a chunk's two arrays together at most.
    pub fn new(rec: &Recorder, place: Place, elements: usize) -> Result<Self> {
        let shelf = match place {
            Place::Device => Shelf::Device,
            Place::Host => Shelf::Host,
            Place::File => Shelf::File(Scratch::new(rec.memory().scratch.as_deref())?),
        };
        Ok(Self { chunks: Vec::new(), shelf, elements })
    }

    /// Adds a chunk before any block, `[tokens, hidden]`.
    pub async fn push(&mut self, rec: &mut Recorder, hidden: Tensor) -> Result<()> {
        self.chunks.push(Chunk::default());
        self.put(rec, self.chunks.len() - 1, Part::Hidden, hidden).await
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Columns of what the next group reads.
    pub fn input_columns(&self) -> usize {
        match self.chunks.first().map(|chunk| &chunk.input) {
            Some(Slot::Device(tensor)) => tensor.shape()[1],
            Some(Slot::Host(shape, _)) => shape[1],
            Some(Slot::File(shape)) => shape[1],
            Some(Slot::Empty) | None => 0,
        }
    }

    /// The residual stream of a chunk, `[tokens, hidden]`.
    pub fn hidden(&self, rec: &mut Recorder, chunk: usize) -> Result<Held<'_>> {
        self.get(rec, chunk, Part::Hidden)
    }

    /// What the next group's linears read of a chunk, `[tokens, columns]`.
    pub fn input(&self, rec: &mut Recorder, chunk: usize) -> Result<Held<'_>> {
        self.get(rec, chunk, Part::Input)
    }

    /// Starts a block: makes the input of q, k and v.
    pub async fn enter(&mut self, rec: &mut Recorder, block: &Block) -> Result<()> {
        for chunk in 0..self.chunks.len() {
            let hidden = self.hidden(rec, chunk)?;
            let input = block.first_input(rec, &hidden)?;
            self.put(rec, chunk, Part::Input, input).await?;
        }
        Ok(())
    }

    /// Makes the input of the output matrix.
    pub async fn leave(&mut self, rec: &mut Recorder, norm: &FinalNorm) -> Result<()> {
        for chunk in 0..self.chunks.len() {
            let hidden = self.hidden(rec, chunk)?;
            let input = norm.apply(rec, &hidden)?;
            self.put(rec, chunk, Part::Input, input).await?;
        }
        Ok(())
    }

    /// Takes a chunk out, to go past the linears of `stage`; its residual stream is empty where that is left alone.
    pub fn take(&mut self, rec: &mut Recorder, chunk: usize, stage: Stage) -> Result<Lane> {
        let hidden = if stage.changes_hidden() { self.fetch(rec, chunk, Part::Hidden)? } else { rec.empty(&[0])? };
        Ok(Lane { hidden, input: self.fetch(rec, chunk, Part::Input)? })
    }

    /// Puts a chunk back that has gone past the linears of `stage`.
    pub async fn put_back(&mut self, rec: &mut Recorder, chunk: usize, stage: Stage, lane: Lane) -> Result<()> {
        if stage.changes_hidden() {
            self.put(rec, chunk, Part::Hidden, lane.hidden).await?;
        }
        match stage {
            // The next block makes its own.
            Stage::Down => Ok(()),
            _ => self.put(rec, chunk, Part::Input, lane.input).await,
        }
    }

    fn get(&self, rec: &mut Recorder, chunk: usize, part: Part) -> Result<Held<'_>> {
        match self.slot(chunk, part) {
            Slot::Device(tensor) => Ok(Held::Here(tensor)),
            slot => self.bring(rec, slot, chunk, part).map(Held::Brought),
        }
    }

    fn fetch(&mut self, rec: &mut Recorder, chunk: usize, part: Part) -> Result<Tensor> {
        match std::mem::take(self.slot_mut(chunk, part)) {
            Slot::Device(tensor) => Ok(tensor),
            slot => self.bring(rec, &slot, chunk, part),
        }
    }

    /// Brings a slot that is elsewhere to the device.
    fn bring(&self, rec: &mut Recorder, slot: &Slot, chunk: usize, part: Part) -> Result<Tensor> {
        match (slot, &self.shelf) {
            (Slot::Host(shape, values), _) => rec.upload(shape, values.clone()),
            (Slot::File(shape), Shelf::File(scratch)) => {
                let len = shape.iter().product();
                let values = scratch.read(self.first_element(chunk, part, len), len)?;
                rec.upload(shape, values)
            }
            _ => unreachable!("a chunk is read after it was put back"),
        }
    }

    async fn put(&mut self, rec: &mut Recorder, chunk: usize, part: Part, tensor: Tensor) -> Result<()> {
        let slot = match &self.shelf {
            Shelf::Device => Slot::Device(tensor),
            Shelf::Host => Slot::Host(tensor.shape().to_vec(), rec.read(&tensor).await?),
            Shelf::File(scratch) => {
                scratch.write(self.first_element(chunk, part, tensor.len()), &rec.read(&tensor).await?)?;
                Slot::File(tensor.shape().to_vec())
            }
        };
        *self.slot_mut(chunk, part) = slot;
        Ok(())
    }

    /// Where an array of `len` elements begins in a file: the residual stream at the front of its chunk's place, the input at its end.
    fn first_element(&self, chunk: usize, part: Part, len: usize) -> usize {
        match part {
            Part::Hidden => chunk * self.elements,
            Part::Input => (chunk + 1) * self.elements - len,
        }
    }

    fn slot(&self, chunk: usize, part: Part) -> &Slot {
        let chunk = &self.chunks[chunk];
        match part {
            Part::Hidden => &chunk.hidden,
            Part::Input => &chunk.input,
        }
    }

    fn slot_mut(&mut self, chunk: usize, part: Part) -> &mut Slot {
        let chunk = &mut self.chunks[chunk];
        match part {
            Part::Hidden => &mut chunk.hidden,
            Part::Input => &mut chunk.input,
        }
    }
}

/// Whether a part stands at the front of its chunk's place in a file, or at its end.
/// A browser has no files: no plan puts anything into one.
#[cfg(target_arch = "wasm32")]
mod scratch {
    use std::path::Path;

    use crate::{Error, Result};

    pub enum Scratch {}

    impl Scratch {
        pub fn new(_: Option<&Path>) -> Result<Self> {
            Err(Error::shape("scratch", "a file in a browser"))
        }

        pub fn read(&self, _: usize, _: usize) -> Result<Vec<f32>> {
            match *self {}
        }

        pub fn write(&self, _: usize, _: &[f32]) -> Result<()> {
            match *self {}
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod scratch {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::path::{Path, PathBuf};

    use crate::tensor::recycled;
    use crate::{Error, Result};

    /// A file without a name: the system removes it with the program, however that ends.
    pub struct Scratch {
        file: File,
        directory: PathBuf,
    }

    impl Scratch {
        /// A file in `directory`, or where the system keeps temporary ones.
        pub fn new(directory: Option<&Path>) -> Result<Self> {
            let directory = directory.map_or_else(std::env::temp_dir, Path::to_owned);
            let file = tempfile::tempfile_in(&directory).map_err(|source| refuse(&directory, source))?;
            Ok(Self { file, directory })
        }

        /// `len` elements from element `first` on.
        pub fn read(&self, first: usize, len: usize) -> Result<Vec<f32>> {
            let mut values = recycled(len);
            let mut read = || {
                (&self.file).seek(place(first))?;
                (&self.file).read_exact(bytemuck::cast_slice_mut(&mut values))
            };
            read().map_err(|source| refuse(&self.directory, source))?;
            Ok(values)
        }

        /// Writes elements from element `first` on.
        pub fn write(&self, first: usize, values: &[f32]) -> Result<()> {
            let write = || {
                (&self.file).seek(place(first))?;
                (&self.file).write_all(bytemuck::cast_slice(values))
            };
            write().map_err(|source| refuse(&self.directory, source))
        }
    }

    fn place(element: usize) -> SeekFrom {
        SeekFrom::Start(element as u64 * size_of::<f32>() as u64)
    }

    fn refuse(directory: &Path, source: std::io::Error) -> Error {
        let remedy = "choose another directory with --scratch, or allow more --memory".to_string();
        Error::Io { path: directory.to_owned(), action: "keep hidden states in", source, remedy }
    }
}
