//! Runs the line of nodes of one block: takes each node's operands from a lane, calls the op, and drops what nobody reads again.
//!
//! The pipeline runs a block in pieces, from one group of linear layers to the next; evaluation and generation run it whole. No
//! op here knows a family, and nothing here knows a method.

use std::ops::Deref;
use std::sync::Arc;

use crate::Result;
use crate::device::Recorder;
use crate::family::{self, Activation, Attention, Node, Norm, NormKind, Op, Value};
use crate::ops::Positions;
use crate::ops::add::{add_assign, add_bias};
use crate::ops::attention::{Heads, attention};
use crate::ops::layer_norm::layer_norm;
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::rope;
use crate::ops::silu_mul::silu_mul;
use crate::tensor::Tensor;

/// A block on a device but for the weights of its linear layers: what all streams through it share.
#[derive(Debug)]
pub struct Block {
    line: Arc<family::Block>,
    /// Of each node: gains and bias of a norm, the biases of linear layers in their order.
    vectors: Vec<Vec<Option<Tensor>>>,
    /// For each value the last node that reads it.
    last_readers: Vec<usize>,
}

/// The weights of a block's linear layers, `[rows, columns]` each: those of every node, none for a node that is no stop.
pub type Weights = Vec<Vec<Tensor>>;

/// A tensor that the lane owns, or one that stays where it is kept.
#[derive(Debug)]
pub enum Held<'a> {
    /// It stays.
    Kept(&'a Tensor),
    /// The lane's own.
    Own(Tensor),
}

impl Deref for Held<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Kept(tensor) => tensor,
            Self::Own(tensor) => tensor,
        }
    }
}

/// The values of a chunk of tokens inside a block, as far as they are there, `[tokens, width]` each.
#[derive(Debug)]
pub struct Lane<'a>(Vec<Option<Held<'a>>>);

impl<'a> Lane<'a> {
    /// The value is there from now on.
    pub fn put(&mut self, value: Value, tensor: Held<'a>) {
        self.0[value.0] = Some(tensor);
    }

    /// A value that is there.
    pub fn get(&self, value: Value) -> &Tensor {
        self.0[value.0].as_ref().expect("a value is made before it is read")
    }

    /// Takes a value out; a copy of one that is kept elsewhere.
    pub fn take(&mut self, rec: &mut Recorder, value: Value) -> Result<Tensor> {
        match self.0[value.0].take().expect("a value is made before it is taken") {
            Held::Own(tensor) => Ok(tensor),
            Held::Kept(tensor) => rec.duplicate(tensor),
        }
    }
}

/// What the nodes need beside their operands.
#[derive(Debug)]
pub struct Context<'a> {
    /// The model's tables of rotary angles, uploaded.
    pub ropes: &'a [Tensor],
    /// Where the tokens stand.
    pub positions: Positions,
    /// What the block remembers of all earlier positions, which the tokens in hand join; `None` where every sequence is in hand
    /// from its beginning.
    pub state: Option<&'a mut State>,
}

/// What a block remembers of one sequence between pieces of it: the keys and values of each attention node,
/// `[capacity, kv_heads·head_dim]` with a row per position.
#[derive(Debug)]
pub struct State(Vec<(usize, [Tensor; 2])>);

impl Block {
    /// `line`, with the `vectors` of each of its nodes.
    pub(super) fn new(line: Arc<family::Block>, vectors: Vec<Vec<Option<Tensor>>>) -> Self {
        let last_readers = line.last_readers();
        Self { line, vectors, last_readers }
    }

    /// The description that is run.
    pub fn line(&self) -> &family::Block {
        &self.line
    }

    /// No values yet.
    pub fn lane<'a>(&self) -> Lane<'a> {
        Lane(self.line.widths.iter().map(|_| None).collect())
    }

    /// An empty state for sequences of up to `capacity` tokens.
    pub fn state(&self, rec: &mut Recorder, capacity: usize) -> Result<State> {
        let mut state = Vec::new();
        for (node, Attention { kv_heads, head_dim, .. }) in self.line.attentions() {
            let shape = [capacity, kv_heads * head_dim];
            state.push((node, [rec.empty(&shape)?, rec.empty(&shape)?]));
        }
        Ok(State(state))
    }

    /// X·Wᵀ for each linear layer, biases left out. `weights`: `[rows, columns]` each; `input`: X, `[tokens, columns]`.
    pub fn project(&self, rec: &mut Recorder, weights: &[Tensor], input: &Tensor) -> Result<Vec<Tensor>> {
        weights.iter().map(|weight| matmul(rec, Orientation::Nt, input, weight)).collect()
    }

    /// Completes the linear layers of `node` with their biases, and puts their `products`, as of [`Block::project`], into the lane.
    pub fn finish_linears(
        &self,
        rec: &mut Recorder,
        node: usize,
        products: Vec<Tensor>,
        lane: &mut Lane<'_>,
    ) -> Result<()> {
        let made = &self.line.nodes[node].makes;
        for ((&value, mut output), bias) in made.iter().zip(products).zip(&self.vectors[node]) {
            if let Some(bias) = bias {
                add_bias(rec, &mut output, bias)?;
            }
            lane.put(value, Held::Own(output));
        }
        self.drop_read(node, lane);
        Ok(())
    }

    /// Runs these nodes in order. `weights`: those of the linear layers of a node.
    pub fn run<'w>(
        &self,
        rec: &mut Recorder,
        nodes: impl IntoIterator<Item = usize>,
        weights: impl Fn(usize) -> &'w [Tensor],
        lane: &mut Lane<'_>,
        context: &mut Context<'_>,
    ) -> Result<()> {
        for node in nodes {
            if let Op::Linears(_) = self.line.nodes[node].op {
                let products = self.project(rec, weights(node), lane.get(self.line.nodes[node].reads[0]))?;
                self.finish_linears(rec, node, products, lane)?;
            } else {
                self.step(rec, node, lane, context)?;
            }
        }
        Ok(())
    }

    /// The whole block on its one input, the residual stream: `[tokens, width]`, like the result.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        weights: &Weights,
        context: &mut Context<'_>,
        hidden: Tensor,
    ) -> Result<Tensor> {
        let mut lane = self.lane();
        lane.put(Value(0), Held::Own(hidden));
        self.run(rec, 0..self.line.nodes.len(), |node| &weights[node], &mut lane, context)?;
        lane.take(rec, self.line.outputs[0])
    }

    /// What the last linear layer reads, from the block's one input.
    pub(super) fn last_input(&self, rec: &mut Recorder, hidden: &Tensor) -> Result<Tensor> {
        let last = self.line.stops().last().unwrap_or(0);
        let mut lane = self.lane();
        lane.put(Value(0), Held::Kept(hidden));
        let mut context = Context { ropes: &[], positions: Positions::whole(hidden.shape()[0]), state: None };
        self.run(rec, 0..last, |_| &[], &mut lane, &mut context)?;
        lane.take(rec, self.line.nodes[last].reads[0])
    }

    /// Runs a node that has no linear layers.
    fn step(&self, rec: &mut Recorder, node: usize, lane: &mut Lane<'_>, context: &mut Context<'_>) -> Result<()> {
        let Node { op, reads, makes } = &self.line.nodes[node];
        let made = match op {
            Op::Linears(_) => unreachable!("linear layers are run with their weights"),
            Op::Norm(norm) => self.norm(rec, node, norm, lane)?,
            &Op::Rope { table, head_dim } => {
                let mut x = self.operand(rec, node, reads[0], lane)?;
                rope(rec, &mut x, &context.ropes[table], head_dim, context.positions)?;
                x
            }
            Op::Attention(heads) => self.attention(rec, node, heads, lane, context)?,
            Op::Gate(Activation::Silu) => silu_mul(rec, lane.get(reads[0]), lane.get(reads[1]))?,
            Op::Add => {
                let mut sum = self.operand(rec, node, reads[0], lane)?;
                add_assign(rec, &mut sum, lane.get(reads[1]))?;
                sum
            }
        };
        lane.put(makes[0], Held::Own(made));
        self.drop_read(node, lane);
        Ok(())
    }

    /// An operand to be overwritten: itself where `node` reads it last, else a copy.
    fn operand(&self, rec: &mut Recorder, node: usize, value: Value, lane: &mut Lane<'_>) -> Result<Tensor> {
        if self.last_readers[value.0] == node { lane.take(rec, value) } else { rec.duplicate(lane.get(value)) }
    }

    /// Drops what `node` was the last to read.
    fn drop_read(&self, node: usize, lane: &mut Lane<'_>) {
        let reads = self.line.nodes[node].reads.iter();
        reads.filter(|value| self.last_readers[value.0] == node).for_each(|value| lane.0[value.0] = None);
    }

    fn norm(&self, rec: &mut Recorder, node: usize, norm: &Norm, lane: &mut Lane<'_>) -> Result<Tensor> {
        let normalise = |rec: &mut Recorder, x: &Tensor| match (norm.kind, self.vectors[node].as_slice()) {
            (NormKind::Rms, [Some(weight)]) => rms_norm(rec, x, weight, norm.epsilon),
            (NormKind::Layer, [Some(weight), Some(bias)]) => layer_norm(rec, x, weight, bias, norm.epsilon),
            (kind, vectors) => unreachable!("{kind:?} with {} tensors", vectors.len()),
        };
        let value = self.line.nodes[node].reads[0];
        if norm.width == self.line.widths[value.0] {
            return normalise(rec, lane.get(value));
        }
        let x = self.operand(rec, node, value, lane)?;
        let shape = x.shape().to_vec();
        let rows = [x.len() / norm.width, norm.width];
        normalise(rec, &x.reshape(&rows)?)?.reshape(&shape)
    }

    fn attention(
        &self,
        rec: &mut Recorder,
        node: usize,
        &Attention { heads, kv_heads, head_dim, window }: &Attention,
        lane: &Lane<'_>,
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let [q, k, v] = [0, 1, 2].map(|operand| lane.get(self.line.nodes[node].reads[operand]));
        let heads = Heads { heads, kv_heads, head_dim, window };
        let Some(state) = &mut context.state else { return attention(rec, q, k, v, heads, context.positions) };
        let cache = state.0.iter_mut().find(|(number, _)| *number == node);
        let (_, [keys, values]) = cache.expect("a state has a cache for every attention node");
        rec.write_rows(k, keys, context.positions.first)?;
        rec.write_rows(v, values, context.positions.first)?;
        attention(rec, q, keys, values, heads, context.positions)
    }
}
