//! A stream of hidden states, kept chunk by chunk on the device, in host memory or in a file, as the plan says.
//!
//! At a stop, a chunk consists of the values that the cut there keeps (`family::Cut`). Only the current chunk must be
//! on the device. A GPU works on the next chunk while the last one is copied back. `pipeline` holds the full-precision
//! stream, and each `run` holds a quantized stream.

use std::collections::{BTreeMap, VecDeque};

use super::scratch::Scratch;
use super::stop::Stop;
use crate::Result;
use crate::device::{Place, Reading, Recorder, Tensor};
use crate::engine::block::{Lane, LaneTensor};
use crate::family::Value;

/// The hidden states of all chunks of the calibration windows.
#[derive(Default)]
pub(super) struct Stream {
    chunks: Vec<BTreeMap<Value, Slot>>,
    storage: Storage,
    /// The arrays that are being copied from a GPU, oldest first.
    transfers: VecDeque<Transfer>,
}

/// The largest number of arrays of a stream that are being copied from a GPU at a time. They are about the arrays of
/// one chunk.
const MAX_TRANSFERS: usize = 2;

/// An array that is being copied to the place where it is kept.
struct Transfer {
    chunk: usize,
    value: Value,
    shape: Vec<usize>,
    reading: Reading,
}

/// A kept array: the tensor itself, or its shape and its elements.
enum Slot {
    Device(Tensor),
    Host(Vec<usize>, Vec<f32>),
    /// The shape, and the position of the first element in the file.
    File(Vec<usize>, usize),
}

/// The place where a stream keeps its arrays.
#[derive(Default)]
enum Storage {
    #[default]
    Device,
    Host,
    File(Scratch),
}

impl Stream {
    /// A stream without chunks, which keeps its arrays at `place`. Errors: `Error::Io` if the file cannot be created.
    pub fn new(rec: &Recorder, place: Place) -> Result<Self> {
        let storage = match place {
            Place::Device => Storage::Device,
            Place::Host => Storage::Host,
            Place::File => Storage::File(Scratch::new(rec.memory().scratch.as_deref())?),
        };
        Ok(Self { storage, ..Self::default() })
    }

    /// Adds a chunk before the first block. `hidden`: its residual stream, `[tokens, width]`.
    pub async fn push(&mut self, rec: &mut Recorder, hidden: Tensor) -> Result<()> {
        self.chunks.push(BTreeMap::new());
        self.put(rec, self.chunks.len() - 1, Value(0), hidden).await
    }

    /// The number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The residual stream of a chunk between two blocks, `[tokens, width]`.
    pub fn hidden(&self, rec: &mut Recorder, chunk: usize) -> Result<LaneTensor<'_>> {
        self.get(rec, chunk, Value(0))
    }

    /// The input of the linear layers of `stop` for one chunk, `[tokens, columns]`. Computes it again from the kept
    /// values if it is not kept itself. `weights`: returns the weights of an earlier stop of the block that this stream
    /// passes through.
    pub fn input<'w>(
        &self,
        rec: &mut Recorder,
        chunk: usize,
        stop: &Stop<'_>,
        weights: impl Fn(usize) -> &'w [Tensor],
    ) -> Result<LaneTensor<'_>> {
        let input = stop.input();
        if stop.cut.kept.contains(&input) {
            return self.get(rec, chunk, input);
        }
        let mut lane = stop.block.lane();
        for &value in &stop.cut.kept {
            lane.put(value, self.get(rec, chunk, value)?);
        }
        stop.block.run(rec, stop.cut.remade.iter().copied(), weights, &mut lane, &mut stop.context())?;
        lane.take(rec, input).map(LaneTensor::Owned)
    }

    /// Loads the values of a chunk at `stop` into a lane. The lane gets the kept values that are read before the next
    /// cut, and the values that are computed again from them. Values that are not kept at the next cut are removed from
    /// the stream. `weights`: as in [`Stream::input`].
    pub fn take_lane<'w>(
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
            lane.put(value, LaneTensor::Owned(self.remove(rec, chunk, value)?));
        }
        for value in stay.into_iter().filter(|&value| stop.reads(value)) {
            lane.put(value, self.get(rec, chunk, value)?);
        }
        stop.block.run(rec, stop.cut.remade.iter().copied(), weights, &mut lane, &mut stop.context())?;
        Ok(lane)
    }

    /// Keeps the values of a chunk that are new at the next cut.
    pub async fn keep(&mut self, rec: &mut Recorder, chunk: usize, values: Vec<(Value, Tensor)>) -> Result<()> {
        for (value, tensor) in values {
            self.put(rec, chunk, value, tensor).await?;
        }
        Ok(())
    }

    /// Turns the `outputs` of a block into the inputs of the next one, in every chunk. Call
    /// [`Stream::wait_for_transfers`] first.
    pub fn leave_block(&mut self, outputs: &[Value]) {
        for chunk in &mut self.chunks {
            let mut slots = std::mem::take(chunk);
            let inputs = outputs.iter().enumerate();
            *chunk = inputs.filter_map(|(input, output)| Some((Value(input), slots.remove(output)?))).collect();
        }
    }

    /// Waits until all arrays are where they are kept. Needed before any value that was stored is read again.
    pub async fn wait_for_transfers(&mut self, rec: &mut Recorder) -> Result<()> {
        while !self.transfers.is_empty() {
            self.receive(rec).await?;
        }
        Ok(())
    }

    /// A kept value on the device. The stream keeps it.
    fn get(&self, rec: &mut Recorder, chunk: usize, value: Value) -> Result<LaneTensor<'_>> {
        match &self.chunks[chunk][&value] {
            Slot::Device(tensor) => Ok(LaneTensor::Borrowed(tensor)),
            Slot::Host(shape, values) => rec.upload_slice(shape, values).map(LaneTensor::Owned),
            Slot::File(shape, first) => self.read(rec, shape, *first).map(LaneTensor::Owned),
        }
    }

    /// A kept value on the device. It is removed from the stream.
    fn remove(&mut self, rec: &mut Recorder, chunk: usize, value: Value) -> Result<Tensor> {
        let slot = self.chunks[chunk].remove(&value);
        match slot.expect("a value is kept until the cut after which nobody reads it") {
            Slot::Device(tensor) => Ok(tensor),
            Slot::Host(shape, values) => rec.upload(&shape, values),
            Slot::File(shape, first) => {
                let tensor = self.read(rec, &shape, first)?;
                if let Storage::File(scratch) = &mut self.storage {
                    scratch.release(first, tensor.len());
                }
                Ok(tensor)
            }
        }
    }

    /// Reads an array from the file.
    fn read(&self, rec: &mut Recorder, shape: &[usize], first: usize) -> Result<Tensor> {
        let Storage::File(scratch) = &self.storage else { unreachable!("only a stream in a file has slots there") };
        rec.upload(shape, scratch.read(first, shape.iter().product())?)
    }

    /// Keeps a value. If it goes to host memory or a file, this starts the copy, and waits for the oldest copies if too
    /// many are under way. The CPU waits for every copy.
    async fn put(&mut self, rec: &mut Recorder, chunk: usize, value: Value, tensor: Tensor) -> Result<()> {
        if let Storage::Device = self.storage {
            self.chunks[chunk].insert(value, Slot::Device(tensor));
            return Ok(());
        }
        let reading = rec.begin_read(&tensor)?;
        self.transfers.push_back(Transfer { chunk, value, shape: tensor.shape().to_vec(), reading });
        let most = if rec.is_gpu() { MAX_TRANSFERS } else { 0 };
        while self.transfers.len() > most {
            self.receive(rec).await?;
        }
        Ok(())
    }

    /// Waits for the oldest transfer and keeps its array.
    async fn receive(&mut self, rec: &mut Recorder) -> Result<()> {
        let Some(Transfer { chunk, value, shape, reading }) = self.transfers.pop_front() else { return Ok(()) };
        let values = rec.end_read(reading).await?;
        let slot = match &mut self.storage {
            Storage::File(scratch) => Slot::File(shape, scratch.store(&values)?),
            Storage::Device | Storage::Host => Slot::Host(shape, values),
        };
        self.chunks[chunk].insert(value, slot);
        Ok(())
    }
}
