//! Hidden states, chunk by chunk, wherever the plan puts them: on the device, in host memory or in a file.
//!
//! Between two groups a chunk is the residual stream and, where it cannot be had from that for little, what the next group's
//! linears read. Only the chunk in hand need be on the device. A GPU goes on with the next chunk while the last one travels.

use std::collections::VecDeque;
use std::ops::Deref;

use scratch::Scratch;

use crate::Result;
use crate::device::{Place, Reading, Recorder};
use crate::engine::block::{Block, Lane, Stage};
use crate::engine::network::FinalNorm;
use crate::tensor::Tensor;

/// The hidden states of all chunks.
#[derive(Default)]
pub(super) struct Stream {
    chunks: Vec<Chunk>,
    shelf: Shelf,
    /// Elements of a chunk's two arrays together at most.
    elements: usize,
    /// Whether what down reads is computed again each time, not kept.
    recompute: bool,
    /// What is on its way from a GPU, oldest first.
    travelling: VecDeque<Travelling>,
}

/// Arrays of a stream that may be on their way from a GPU at a time: those of one chunk.
const TRAVELLING: usize = 2;

/// An array on its way to where it is kept.
struct Travelling {
    chunk: usize,
    part: Part,
    shape: Vec<usize>,
    reading: Reading,
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

/// Where the linears of a group get their input from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// It was put back with the chunk.
    Kept,
    /// The residual stream, through the norm before this stage.
    Norm(&'a Block, Stage),
    /// The residual stream, through gate and up with these weights.
    GateUp(&'a Block, &'a [Tensor]),
    /// The residual stream, through the last norm.
    Head(&'a FinalNorm),
}

impl<'a> Origin<'a> {
    /// The same for another stream, whose gate and up have these weights.
    pub fn through(self, gate_up: Option<&'a [Tensor]>) -> Self {
        match (self, gate_up) {
            (Self::GateUp(block, _), Some(weights)) => Self::GateUp(block, weights),
            (origin, _) => origin,
        }
    }

    fn make(self, rec: &mut Recorder, hidden: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kept => unreachable!("what was kept is not made again"),
            Self::Norm(block, stage) => block.normalise(rec, stage, hidden),
            Self::GateUp(block, weights) => block.down_input(rec, weights, hidden),
            Self::Head(norm) => norm.apply(rec, hidden),
        }
    }
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
    /// No chunks yet. `elements`: of a chunk's two arrays together at most; `recompute`: not to keep what down reads.
    pub fn new(rec: &Recorder, place: Place, elements: usize, recompute: bool) -> Result<Self> {
        let shelf = match place {
            Place::Device => Shelf::Device,
            Place::Host => Shelf::Host,
            Place::File => Shelf::File(Scratch::new(rec.memory().scratch.as_deref())?),
        };
        Ok(Self { shelf, elements, recompute, ..Self::default() })
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

    /// Whether what down reads is computed again each time.
    pub fn recomputes(&self) -> bool {
        self.recompute
    }

    /// Where the input of the linears of `stage` comes from. `gate_up`: the weights of these two in this stream.
    pub fn origin<'a>(&self, block: &'a Block, stage: Stage, gate_up: &'a [Tensor]) -> Origin<'a> {
        match stage {
            _ if stage.begins_with_norm() => Origin::Norm(block, stage),
            Stage::Down if self.recompute => Origin::GateUp(block, gate_up),
            _ => Origin::Kept,
        }
    }

    /// The residual stream of a chunk, `[tokens, hidden]`.
    pub fn hidden(&self, rec: &mut Recorder, chunk: usize) -> Result<Held<'_>> {
        self.get(rec, chunk, Part::Hidden)
    }

    /// What a group's linears read of a chunk, `[tokens, columns]`.
    pub fn input(&self, rec: &mut Recorder, chunk: usize, origin: Origin<'_>) -> Result<Held<'_>> {
        match origin {
            Origin::Kept => self.get(rec, chunk, Part::Input),
            _ => {
                let hidden = self.hidden(rec, chunk)?;
                origin.make(rec, &hidden).map(Held::Brought)
            }
        }
    }

    /// Takes a chunk out, to go past the linears of `stage`; its residual stream is empty where that is left alone.
    pub fn take(&mut self, rec: &mut Recorder, chunk: usize, stage: Stage, origin: Origin<'_>) -> Result<Lane> {
        let hidden = match stage.changes_hidden() {
            true => Some(self.fetch(rec, chunk, Part::Hidden)?),
            false => None,
        };
        let input = match (origin, &hidden) {
            (Origin::Kept, _) => self.fetch(rec, chunk, Part::Input)?,
            (_, Some(hidden)) => origin.make(rec, hidden)?,
            (_, None) => {
                let hidden = self.hidden(rec, chunk)?;
                origin.make(rec, &hidden)?
            }
        };
        Ok(Lane { hidden: hidden.map_or_else(|| rec.empty(&[0]), Ok)?, input })
    }

    /// Puts a chunk back that has gone past the linears of `stage`.
    pub async fn put_back(&mut self, rec: &mut Recorder, chunk: usize, stage: Stage, lane: Lane) -> Result<()> {
        if stage.changes_hidden() {
            self.put(rec, chunk, Part::Hidden, lane.hidden).await?;
        }
        match stage {
            Stage::GateUp if self.recompute => Ok(()),
            Stage::Attention | Stage::GateUp => self.put(rec, chunk, Part::Input, lane.input).await,
            // A norm follows.
            Stage::Output | Stage::Down => Ok(()),
        }
    }

    /// Waits until everything is where it is kept: before anything is read again.
    pub async fn arrive(&mut self, rec: &mut Recorder) -> Result<()> {
        while !self.travelling.is_empty() {
            self.receive(rec).await?;
        }
        Ok(())
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
            (Slot::Host(shape, values), _) => rec.upload_slice(shape, values),
            (Slot::File(shape), Shelf::File(scratch)) => {
                let len = shape.iter().product();
                let values = scratch.read(self.first_element(chunk, part, len), len)?;
                rec.upload(shape, values)
            }
            _ => unreachable!("a chunk is read after it was put back and has arrived"),
        }
    }

    async fn put(&mut self, rec: &mut Recorder, chunk: usize, part: Part, tensor: Tensor) -> Result<()> {
        if let Shelf::Device = self.shelf {
            *self.slot_mut(chunk, part) = Slot::Device(tensor);
            return Ok(());
        }
        let reading = rec.begin_read(&tensor)?;
        self.travelling.push_back(Travelling { chunk, part, shape: tensor.shape().to_vec(), reading });
        let most = if rec.is_gpu() { TRAVELLING } else { 0 };
        while self.travelling.len() > most {
            self.receive(rec).await?;
        }
        Ok(())
    }

    /// Waits for the oldest array that is on its way.
    async fn receive(&mut self, rec: &mut Recorder) -> Result<()> {
        let Some(Travelling { chunk, part, shape, reading }) = self.travelling.pop_front() else { return Ok(()) };
        let values = rec.end_read(reading).await?;
        *self.slot_mut(chunk, part) = match &self.shelf {
            Shelf::File(scratch) => {
                scratch.write(self.first_element(chunk, part, values.len()), &values)?;
                Slot::File(shape)
            }
            Shelf::Device | Shelf::Host => Slot::Host(shape, values),
        };
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

    use crate::error::{Setting, phrase};
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
        let remedy = phrase!["choose another directory with ", Setting::Scratch, ", or allow more ", Setting::Memory];
        Error::Io { path: directory.to_owned(), action: "keep hidden states in", source, remedy }
    }
}
