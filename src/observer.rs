//! The interface between a run and the program around it. The run reports its progress as events. The program provides
//! a clock and can cancel the run.
//!
//! The command line, the page and the tests implement [`Observer`]. The pipeline, the evaluation and `study` call it.

use crate::device::Place;
use crate::error::Phrase;
use crate::record::{Phase, Plan};
use crate::{Error, Result};

/// A stop of a block: a group of linear layers that read the same input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Number of the block, from 0.
    pub block: usize,
    /// Number of the group in the block, from 0.
    pub index: usize,
    /// Number of groups in the block.
    pub groups: usize,
    /// The linear layers in a few words, such as `gate, up`.
    pub label: String,
}

/// The progress of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The run is planned. Sent before any work on a block.
    Planned {
        /// Runs that go through the blocks together.
        runs: usize,
        /// Blocks of the model.
        blocks: usize,
        /// Groups of linear layers in all blocks.
        groups: usize,
        /// Calibration tokens, including the held-out tokens.
        tokens: usize,
        /// Held-out tokens.
        held_out: usize,
        /// Inputs per grid in the first run. `None` if there is one grid per row.
        group_size: Option<usize>,
        /// The memory that the run will use.
        plan: Plan,
    },
    /// A phase of a group begins.
    Phase {
        /// The group.
        group: Group,
        /// The phase.
        phase: Phase,
    },
    /// A group is quantized in every run, and all streams have passed it.
    Group(Group),
    /// The output begins to receive the layers of a block.
    Write {
        /// Number of the block, from 0.
        block: usize,
    },
    /// A block is done.
    Block {
        /// Number of the block, from 0.
        block: usize,
        /// The relative error of the quantized stream after the block, ‖S − Ŝ‖/‖S‖ over the calibration tokens. One
        /// number for each run that has not failed.
        errors: Vec<f64>,
    },
    /// The output matrix is quantized next. Sent after the last block.
    Head,
    /// The device ran out of memory. The run starts again and uses less.
    Retry {
        /// The error that ended the attempt, as a sentence.
        reason: Phrase,
        /// Tokens that are processed together from now on.
        chunk_tokens: usize,
        /// The fastest place that may hold hidden states from now on.
        streams: Place,
    },
    /// The evaluated model has passed a block.
    EvaluationBlock {
        /// Blocks done, over all passes.
        block: usize,
        /// Blocks of the model, counted once for each pass through it.
        blocks: usize,
    },
    /// An evaluation has scored some of its windows.
    EvaluationHead {
        /// Windows scored.
        scored: usize,
        /// Windows of the text.
        windows: usize,
    },
}

/// The program that runs the library.
pub trait Observer {
    /// Receives an event.
    fn event(&mut self, event: &Event);
    /// The time in seconds since some fixed moment. The library itself reads no clock.
    fn seconds(&self) -> f64;
    /// Whether the run should stop. The library asks before each chunk of tokens and before each group of linear
    /// layers.
    fn cancelled(&self) -> bool;
    /// Returns an error if the run should stop. Errors: `Error::Cancelled`.
    fn go_on(&self) -> Result<()> {
        if self.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// An observer that ignores all events, for tests and for callers that need neither progress nor times.
impl Observer for () {
    fn event(&mut self, _: &Event) {}
    fn seconds(&self) -> f64 {
        0.0
    }
    fn cancelled(&self) -> bool {
        false
    }
}
