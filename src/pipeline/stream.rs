//! A stream of hidden states, chunk by chunk, wherever the plan puts them: on the device, in host memory or in a file.
//!
//! Between two groups of linear layers a chunk is the values that the cut there keeps (`family::Cut`). Only the chunk in hand
//! need be on the device. A GPU goes on with the next chunk while the last one travels.

use std::collections::{BTreeMap, VecDeque};

use super::scratch::Scratch;
use super::stop::Stop;
use crate::Result;
use crate::device::{Place, Reading, Recorder, Tensor};
use crate::engine::block::{Held, Lane};
use crate::family::Value;

/// The hidden states of all chunks.
#[derive(Default)]
pub(super) struct Stream {
    chunks: Vec<BTreeMap<Value, Slot>>,
    shelf: Shelf,
    /// What is on its way from a GPU, oldest first.
    travelling: VecDeque<Travelling>,
}

/// Arrays of a stream that may be on their way from a GPU at a time: about those of one chunk.
const TRAVELLING: usize = 2;

/// An array on its way to where it is kept.
struct Travelling {
    chunk: usize,
    value: Value,
    shape: Vec<usize>,
    reading: Reading,
}

/// An array and where it is kept.
enum Slot {
    Device(Tensor),
    Host(Vec<usize>, Vec<f32>),
    /// Its shape, and the place of its first element.
    File(Vec<usize>, usize),
}

/// Where arrays are kept.
#[derive(Default)]
enum Shelf {
    #[default]
    Device,
    Host,
    File(Scratch),
}

impl Stream {
    /// No chunks yet.
    pub fn new(rec: &Recorder, place: Place) -> Result<Self> {
        let shelf = match place {
            Place::Device => Shelf::Device,
            Place::Host => Shelf::Host,
            Place::File => Shelf::File(Scratch::new(rec.memory().scratch.as_deref())?),
        };
        Ok(Self { shelf, ..Self::default() })
    }

    /// Adds a chunk before any block: the residual stream, `[tokens, width]`.
    pub async fn push(&mut self, rec: &mut Recorder, hidden: Tensor) -> Result<()> {
        self.chunks.push(BTreeMap::new());
        self.put(rec, self.chunks.len() - 1, Value(0), hidden).await
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The residual stream of a chunk between two blocks, `[tokens, width]`.
    pub fn hidden(&self, rec: &mut Recorder, chunk: usize) -> Result<Held<'_>> {
        self.get(rec, chunk, Value(0))
    }

    /// What the linear layers of a stop read of a chunk, `[tokens, columns]`. `weights`: this stream's, of earlier stops of the block.
    pub fn input<'w>(
        &self,
        rec: &mut Recorder,
        chunk: usize,
        stop: &Stop<'_>,
        weights: impl Fn(usize) -> &'w [Tensor],
    ) -> Result<Held<'_>> {
        let input = stop.input();
        if stop.cut.kept.contains(&input) {
            return self.get(rec, chunk, input);
        }
        let mut lane = stop.block.lane();
        for &value in &stop.cut.kept {
            lane.put(value, self.get(rec, chunk, value)?);
        }
        stop.block.run(rec, stop.cut.remade.iter().copied(), weights, &mut lane, &mut stop.context())?;
        lane.take(rec, input).map(Held::Own)
    }

    /// Takes a chunk to a stop: what is kept here and read before the next cut, and what is made from it again. What is not kept
    /// at the next cut leaves the stream. `weights`: as of [`Stream::input`].
    pub fn lane<'w>(
        &mut self,
        rec: &mut Recorder,
        chunk: usize,
        stop: &Stop<'_>,
        weights: impl Fn(usize) -> &'w [Tensor],
    ) -> Result<Lane<'_>> {
        let mut lane = stop.block.lane();
        let (stay, leave): (Vec<Value>, Vec<Value>) =
            stop.cut.kept.iter().partition(|value| stop.next.kept.contains(value));
        for value in leave {
            lane.put(value, Held::Own(self.fetch(rec, chunk, value)?));
        }
        for value in stay.into_iter().filter(|&value| stop.reads(value)) {
            lane.put(value, self.get(rec, chunk, value)?);
        }
        stop.block.run(rec, stop.cut.remade.iter().copied(), weights, &mut lane, &mut stop.context())?;
        Ok(lane)
    }

    /// Keeps the values of a chunk that has arrived at the next cut.
    pub async fn keep(&mut self, rec: &mut Recorder, chunk: usize, values: Vec<(Value, Tensor)>) -> Result<()> {
        for (value, tensor) in values {
            self.put(rec, chunk, value, tensor).await?;
        }
        Ok(())
    }

    /// Leaves a block: its `outputs` become the inputs of the next one. Everything must have arrived.
    pub fn leave_block(&mut self, outputs: &[Value]) {
        for chunk in &mut self.chunks {
            let mut slots = std::mem::take(chunk);
            let inputs = outputs.iter().enumerate();
            *chunk = inputs.filter_map(|(input, output)| Some((Value(input), slots.remove(output)?))).collect();
        }
    }

    /// Waits until everything is where it is kept: before anything is read again.
    pub async fn wait_for_transfers(&mut self, rec: &mut Recorder) -> Result<()> {
        while !self.travelling.is_empty() {
            self.receive(rec).await?;
        }
        Ok(())
    }

    fn get(&self, rec: &mut Recorder, chunk: usize, value: Value) -> Result<Held<'_>> {
        match &self.chunks[chunk][&value] {
            Slot::Device(tensor) => Ok(Held::Kept(tensor)),
            Slot::Host(shape, values) => rec.upload_slice(shape, values).map(Held::Own),
            Slot::File(shape, first) => self.read(rec, shape, *first).map(Held::Own),
        }
    }

    fn fetch(&mut self, rec: &mut Recorder, chunk: usize, value: Value) -> Result<Tensor> {
        let slot = self.chunks[chunk].remove(&value);
        match slot.expect("a value is kept until the cut after which nobody reads it") {
            Slot::Device(tensor) => Ok(tensor),
            Slot::Host(shape, values) => rec.upload(&shape, values),
            Slot::File(shape, first) => {
                let tensor = self.read(rec, &shape, first)?;
                if let Shelf::File(scratch) = &mut self.shelf {
                    scratch.release(first, tensor.len());
                }
                Ok(tensor)
            }
        }
    }

    fn read(&self, rec: &mut Recorder, shape: &[usize], first: usize) -> Result<Tensor> {
        let Shelf::File(scratch) = &self.shelf else { unreachable!("only a stream in a file has slots there") };
        rec.upload(shape, scratch.read(first, shape.iter().product())?)
    }

    async fn put(&mut self, rec: &mut Recorder, chunk: usize, value: Value, tensor: Tensor) -> Result<()> {
        if let Shelf::Device = self.shelf {
            self.chunks[chunk].insert(value, Slot::Device(tensor));
            return Ok(());
        }
        let reading = rec.begin_read(&tensor)?;
        self.travelling.push_back(Travelling { chunk, value, shape: tensor.shape().to_vec(), reading });
        let most = if rec.is_gpu() { TRAVELLING } else { 0 };
        while self.travelling.len() > most {
            self.receive(rec).await?;
        }
        Ok(())
    }

    /// Waits for the oldest array that is on its way.
    async fn receive(&mut self, rec: &mut Recorder) -> Result<()> {
        let Some(Travelling { chunk, value, shape, reading }) = self.travelling.pop_front() else { return Ok(()) };
        let values = rec.end_read(reading).await?;
        let slot = match &mut self.shelf {
            Shelf::File(scratch) => Slot::File(shape, scratch.store(&values)?),
            Shelf::Device | Shelf::Host => Slot::Host(shape, values),
        };
        self.chunks[chunk].insert(value, slot);
        Ok(())
    }
}
