//! A stop: a group of linear layers with one input, where the pipeline measures, corrects and quantizes.
//!
//! [`Stop`] holds what all streams and runs share at the stop. `pipeline` makes one for each group of a block and one
//! for the output matrix; `run` and `stream` use it.

use std::collections::BTreeMap;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::engine::block::{Block, Context, Lane};
use crate::family::{Cut, LinearSpec, Value};
use crate::observer::{Event, Group, Observer};
use crate::ops::Positions;
use crate::record::Phase;

/// The weights of some stops of a block, by the index of the node.
pub(super) type WeightsByNode = BTreeMap<usize, Vec<Tensor>>;

/// A group of linear layers that read one value, with everything that all streams share there.
pub(super) struct Stop<'a> {
    /// The checkpoint that the model is read from.
    pub checkpoint: &'a Checkpoint,
    /// The group as observers see it. `None` for the output matrix.
    pub group: Option<Group>,
    /// The name of the group in errors.
    pub place: String,
    /// Number of the block. For the output matrix, the number of blocks.
    pub layer: usize,
    /// The block that the stop belongs to, or the head.
    pub block: &'a Block,
    /// The cut at this stop: the values that a stream keeps here, and the nodes to run before and after the linear
    /// layers.
    pub cut: &'a Cut,
    /// The next cut: the next stop, or the end of the block.
    pub next: &'a Cut,
    /// The linear layers.
    pub specs: &'a [LinearSpec],
    /// The original weights of the linear layers, `[rows, columns]` each.
    pub weights: &'a [Tensor],
    /// The original weights of those earlier stops through which chunks pass again.
    pub earlier: &'a WeightsByNode,
    /// The model's tables of rotary angles, on the device.
    pub ropes: &'a [Tensor],
    /// The positions of the tokens, the same in every chunk.
    pub positions: Positions,
    /// Number of chunks of each stream.
    pub chunks: usize,
    /// The index of the first held-out chunk.
    pub held_out_from: usize,
}

impl Stop<'_> {
    /// The value that the linear layers read.
    pub fn input(&self) -> Value {
        self.block.line().nodes[self.cut.node].reads[0]
    }

    /// Whether a node between this stop and the next cut reads `value`. The nodes that are computed again before the
    /// stop are included.
    pub fn reads(&self, value: Value) -> bool {
        let nodes = self.cut.remade.iter().chain([&self.cut.node]).chain(&self.cut.run);
        nodes.into_iter().any(|&node| self.block.line().nodes[node].reads.contains(&value))
    }

    /// What the nodes need besides their operands.
    pub fn context(&self) -> Context<'_> {
        Context { ropes: self.ropes, positions: self.positions, state: None }
    }

    /// 0 for a chunk of fitting tokens, 1 for a chunk of held-out tokens.
    pub fn part(&self, chunk: usize) -> usize {
        usize::from(chunk >= self.held_out_from)
    }

    /// Whether there are held-out chunks.
    pub fn holds_out(&self) -> bool {
        self.held_out_from < self.chunks
    }

    /// Tells the observer that a phase begins. Does nothing for the output matrix.
    pub fn announce(&self, phase: Phase, observer: &mut dyn Observer) {
        if let Some(group) = &self.group {
            observer.event(&Event::Phase { group: group.clone(), phase });
        }
    }

    /// Takes a chunk from this stop to the next cut. `products`: X·Wᵀ of each linear layer, with the weights of the
    /// chunk's stream; `lane`: the values of the chunk at this stop. Returns the values that are kept at the next cut
    /// and were not kept here.
    pub fn run_to_next_cut(
        &self,
        rec: &mut Recorder,
        products: Vec<Tensor>,
        mut lane: Lane<'_>,
    ) -> Result<Vec<(Value, Tensor)>> {
        self.block.finish_linears(rec, self.cut.node, products, &mut lane)?;
        let unweighted = |_| -> &[Tensor] { &[] };
        self.block.run(rec, self.cut.run.iter().copied(), unweighted, &mut lane, &mut self.context())?;
        let arrived = self.next.kept.iter().filter(|value| !self.cut.kept.contains(value));
        arrived.map(|&value| Ok((value, lane.take(rec, value)?))).collect()
    }
}
