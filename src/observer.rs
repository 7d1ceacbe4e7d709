//! What a run tells the program around it, and what it asks of it: a clock and whether to stop.

use crate::device::Place;
use crate::error::Phrase;
use crate::record::{Phase, Plan};
use crate::{Error, Result};

/// A group of linear layers that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Block, from 0.
    pub block: usize,
    /// Place among the groups of the block, from 0.
    pub index: usize,
    /// Groups of the block.
    pub groups: usize,
    /// Its layers in a few words, such as `gate, up`.
    pub label: String,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Before any work on a block.
    Planned {
        /// Runs that go through the blocks together.
        runs: usize,
        /// Blocks of the model.
        blocks: usize,
        /// Groups of linear layers in all of them.
        groups: usize,
        /// Calibration tokens, held-out ones included.
        tokens: usize,
        /// Tokens held out.
        held_out: usize,
        /// Inputs per grid of the first run, `None` for per channel.
        group_size: Option<usize>,
        /// What will be where.
        plan: Plan,
    },
    /// A phase of a group begins.
    Phase {
        /// The group.
        group: Group,
        /// What begins.
        phase: Phase,
    },
    /// A group is quantized in every run, and all streams have passed it.
    Group(Group),
    /// The layers of a block are handed to the output.
    Write {
        /// Block, from 0.
        block: usize,
    },
    /// A block is done.
    Block {
        /// Block, from 0.
        block: usize,
        /// ‖S − Ŝ‖/‖S‖ after it, on the calibration tokens: one for each run that has not broken down.
        errors: Vec<f64>,
    },
    /// The output matrix is next, after the last block.
    Head,
    /// The device ran out of memory, and the run begins again with less.
    Retry {
        /// The error that ended the attempt, as a sentence.
        reason: Phrase,
        /// Tokens that are processed together from now on.
        chunk_tokens: usize,
        /// Where hidden states are from now on.
        streams: Place,
    },
    /// An evaluated model has passed a block.
    EvaluationBlock {
        /// Blocks done.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// An evaluation has scored these windows.
    EvaluationHead {
        /// Windows done.
        scored: usize,
        /// Windows of the text.
        windows: usize,
    },
}

/// The program around the library.
pub trait Observer {
    /// Takes notice of an event.
    fn event(&mut self, event: &Event);
    /// Seconds from some fixed point in time: the library reads no clock.
    fn seconds(&self) -> f64;
    /// Whether to stop at the next opportunity, which is the next chunk of tokens or the next group of linears.
    fn cancelled(&self) -> bool;
    /// Errors: `Error::Cancelled` if it is time to stop.
    fn go_on(&self) -> Result<()> {
        if self.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Looks away, for tests and for callers that need neither progress nor times.
impl Observer for () {
    fn event(&mut self, _: &Event) {}
    fn seconds(&self) -> f64 {
        0.0
    }
    fn cancelled(&self) -> bool {
        false
    }
}
