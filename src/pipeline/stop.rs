//! A stop: a group of linear layers with one input, where the pipeline measures, corrects and quantizes.
//!
//! [`Stop`] holds what all streams and runs share at the stop. `pipeline` makes one for each group of a block and one
//! for the output matrix; `run` and `stream` use it.

use std::collections::BTreeMap;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::engine::block::{Block, Context, Lane};
use crate::engine::network::Network;
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

/// The stops of the current block, and what all streams share there.
pub(super) struct BlockStops {
    pub layer: usize,
    pub block: Block,
    pub cuts: Vec<Cut>,
    specs: Vec<LinearSpec>,
    /// The original weights of those earlier stops of the block through which chunks pass again.
    pub earlier: WeightsByNode,
}

impl BlockStops {
    /// Block `layer`, or the head, whose number is one past the last block. `remake`: as of [`family::Block::cuts`].
    pub fn new(layer: usize, block: Block, remake: bool) -> Self {
        let cuts = block.line().cuts(remake);
        let specs = block.line().groups().flatten().map(|linear| linear.at(layer)).collect();
        Self { layer, block, cuts, specs, earlier: WeightsByNode::new() }
    }

    /// The number of stops.
    pub fn count(&self) -> usize {
        self.cuts.len() - 1
    }

    /// Stop number `stop` as observers see it.
    fn group(&self, stop: usize) -> Group {
        let label = self.block.line().label(self.cuts[stop].node);
        Group { block: self.layer, index: stop, groups: self.count(), label }
    }

    /// The linear layers of stop number `stop`.
    fn specs(&self, stop: usize) -> &[LinearSpec] {
        let mut groups = self.block.line().groups().map(<[_]>::len);
        let first: usize = groups.by_ref().take(stop).sum();
        &self.specs[first..first + groups.next().unwrap_or(0)]
    }

    /// Whether chunks pass through the linear layers of stop number `stop` again at a later stop.
    pub fn is_run_again(&self, stop: usize) -> bool {
        let node = self.cuts[stop].node;
        self.cuts.iter().any(|cut| cut.remade.contains(&node))
    }

    /// Stop number `index`, whose linear layers have the original `weights`.
    pub fn stop<'s>(&'s self, index: usize, weights: &'s [Tensor], shared: Shared<'s>) -> Stop<'s> {
        let Shared { network, chunks, held_out_from } = shared;
        let specs = self.specs(index);
        let group = (self.layer < network.config().blocks.len()).then(|| self.group(index));
        let place = match &group {
            Some(group) => format!("block {}, {}", group.block, group.label),
            None => specs[0].name.clone(),
        };
        Stop {
            checkpoint: network.checkpoint(),
            group,
            place,
            layer: self.layer,
            block: &self.block,
            cut: &self.cuts[index],
            next: &self.cuts[index + 1],
            specs,
            weights,
            earlier: &self.earlier,
            ropes: network.ropes(),
            positions: network.positions(),
            chunks,
            held_out_from,
        }
    }
}

/// What all stops of a session share.
#[derive(Clone, Copy)]
pub(super) struct Shared<'s> {
    pub network: &'s Network<'s>,
    /// The number of chunks.
    pub chunks: usize,
    /// The index of the first held-out chunk.
    pub held_out_from: usize,
}
