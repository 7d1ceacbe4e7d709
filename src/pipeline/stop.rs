//! A stop: a group of linear layers of the block in hand, with what all streams share there.

use std::collections::BTreeMap;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::engine::block::{Block, Context, Lane};
use crate::family::{Cut, LinearSpec, Value};
use crate::observer::{Event, Group, Observer};
use crate::ops::Positions;
use crate::record::Phase;

/// Weights of stops of a block, by node.
pub(super) type WeightsByNode = BTreeMap<usize, Vec<Tensor>>;

/// A group of linear layers that read one value.
pub(super) struct Stop<'a> {
    pub checkpoint: &'a Checkpoint,
    /// What observers are told; `None` for the output matrix.
    pub group: Option<Group>,
    /// The group in messages.
    pub place: String,
    /// Number of the block.
    pub layer: usize,
    pub block: &'a Block,
    /// What streams keep here, and at the next stop or the end of the block.
    pub cut: &'a Cut,
    pub next: &'a Cut,
    /// The linear layers, with their original weights `[rows, columns]`.
    pub specs: &'a [LinearSpec],
    pub weights: &'a [Tensor],
    /// The original weights of earlier stops that chunks go through again.
    pub earlier: &'a WeightsByNode,
    pub ropes: &'a [Tensor],
    /// Of the sequences of every chunk.
    pub positions: Positions,
    pub chunks: usize,
    /// The chunks from this one on are held out.
    pub held_out_from: usize,
}

impl Stop<'_> {
    /// What the linear layers read.
    pub fn input(&self) -> Value {
        self.block.line().nodes[self.cut.node].reads[0]
    }

    /// Whether a value is read between here and the next cut.
    pub fn reads(&self, value: Value) -> bool {
        let nodes = self.cut.remade.iter().chain([&self.cut.node]).chain(&self.cut.run);
        nodes.into_iter().any(|&node| self.block.line().nodes[node].reads.contains(&value))
    }

    /// What nodes need beside their operands.
    pub fn context(&self) -> Context<'_> {
        Context { ropes: self.ropes, positions: self.positions, state: None }
    }

    /// 0 for a chunk to fit on, 1 for one that is held out.
    pub fn part(&self, chunk: usize) -> usize {
        usize::from(chunk >= self.held_out_from)
    }

    /// Whether any chunk is held out.
    pub fn holds_out(&self) -> bool {
        self.held_out_from < self.chunks
    }

    /// Tells the observer that a phase begins.
    pub fn begin(&self, phase: Phase, observer: &mut dyn Observer) {
        if let Some(group) = &self.group {
            observer.event(&Event::Phase { group: group.clone(), phase });
        }
    }

    /// Takes a chunk that stands here to the next cut. `products`: X·Wᵀ of each linear layer with the weights of the chunk's
    /// stream. Returns what is kept there and was not kept here.
    pub fn pass(&self, rec: &mut Recorder, products: Vec<Tensor>, mut lane: Lane<'_>) -> Result<Vec<(Value, Tensor)>> {
        self.block.finish_linears(rec, self.cut.node, products, &mut lane)?;
        let unweighted = |_| -> &[Tensor] { &[] };
        self.block.run(rec, self.cut.run.iter().copied(), unweighted, &mut lane, &mut self.context())?;
        let arrived = self.next.kept.iter().filter(|value| !self.cut.kept.contains(value));
        arrived.map(|&value| Ok((value, lane.take(rec, value)?))).collect()
    }
}
