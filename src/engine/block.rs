//! Runs one block of a model on a device.
//!
//! `family` describes a block as a list of nodes. [`Block`] takes the operands of each node from a lane, calls the op
//! in `ops`, puts the results into the lane, and drops values that no later node reads. The pipeline runs a block in
//! pieces, from one stop (a group of linear layers with one input) to the next. Evaluation and generation run it whole.
//! No op called here knows a model family, and nothing here knows a quantization method.

use std::ops::Deref;
use std::sync::Arc;

use crate::Result;
use crate::device::{Recorder, Tensor};
use crate::family::{self, Attention, Columns, Node, Norm, NormKind, Op, Value};
use crate::ops::Positions;
use crate::ops::activate::{Activation, activate, gate};
use crate::ops::add::{add_assign, add_bias};
use crate::ops::attention::{Heads, attention};
use crate::ops::columns::columns;
use crate::ops::embedding;
use crate::ops::layer_norm::layer_norm;
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::{Pairs, rope};
use crate::ops::scale::{scale, scale_columns};
use crate::ops::softcap::softcap;

/// A block on a device, without the weights of its linear layers. All streams that pass through the block share it.
#[derive(Debug)]
pub struct Block {
    line: Arc<family::Block>,
    /// For each node, the small tensors that it uses: the gains of a norm, and the bias of a LayerNorm; the biases of
    /// linear layers in their order (`None` for a layer without a bias); the table of learned positions; factors of
    /// columns.
    vectors: Vec<Vec<Option<Tensor>>>,
    /// For each value, the index of the last node that reads it.
    last_readers: Vec<usize>,
}

/// The weights of the linear layers of a block, `[rows, columns]` each: one list per node. The list is empty for a node
/// that is not a stop.
pub type Weights = Vec<Vec<Tensor>>;

/// A tensor in a lane.
#[derive(Debug)]
pub enum LaneTensor<'a> {
    /// A tensor that is kept outside the lane, such as in a stream.
    Borrowed(&'a Tensor),
    /// A tensor that the lane owns.
    Owned(Tensor),
}

impl Deref for LaneTensor<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Borrowed(tensor) => tensor,
            Self::Owned(tensor) => tensor,
        }
    }
}

/// The values of one chunk of tokens inside a block, `[tokens, width]` each. Only some of the values are present at a
/// time.
#[derive(Debug)]
pub struct Lane<'a>(Vec<Option<LaneTensor<'a>>>);

impl<'a> Lane<'a> {
    /// Stores a value in the lane.
    pub fn put(&mut self, value: Value, tensor: LaneTensor<'a>) {
        self.0[value.0] = Some(tensor);
    }

    /// Returns a value. Panics if the value is not in the lane.
    pub fn get(&self, value: Value) -> &Tensor {
        self.0[value.0].as_ref().expect("a value is made before it is read")
    }

    /// Removes a value from the lane and returns it, as a copy if it is kept outside the lane. Panics if the value is
    /// not in the lane.
    pub fn take(&mut self, rec: &mut Recorder, value: Value) -> Result<Tensor> {
        match self.0[value.0].take().expect("a value is made before it is taken") {
            LaneTensor::Owned(tensor) => Ok(tensor),
            LaneTensor::Borrowed(tensor) => rec.duplicate(tensor),
        }
    }
}

/// What the nodes of a block need besides their operands.
#[derive(Debug)]
pub struct Context<'a> {
    /// The model's tables of rotary angles, on the device.
    pub ropes: &'a [Tensor],
    /// The positions of the tokens in their sequences.
    pub positions: Positions,
    /// The keys and values of all earlier positions of the sequence. The block adds those of the current tokens. `None`
    /// if every sequence is processed whole.
    pub state: Option<&'a mut State>,
}

/// The keys and values of one sequence, which a block keeps from one piece of the sequence to the next. Each attention
/// node has a pair of matrices `[capacity, kv_heads·head_dim]` with one row per position.
#[derive(Debug)]
pub struct State(Vec<(usize, [Tensor; 2])>);

impl Block {
    /// Makes a block from its description. `vectors`: for each node, the small tensors that it uses.
    pub(super) fn new(line: Arc<family::Block>, vectors: Vec<Vec<Option<Tensor>>>) -> Self {
        let last_readers = line.last_readers();
        Self { line, vectors, last_readers }
    }

    /// The description of the block.
    pub fn line(&self) -> &family::Block {
        &self.line
    }

    /// Returns an empty lane.
    pub fn lane<'a>(&self) -> Lane<'a> {
        Lane(self.line.widths.iter().map(|_| None).collect())
    }

    /// Returns a state for sequences of up to `capacity` tokens. Its contents are undefined until tokens have passed.
    pub fn state(&self, rec: &mut Recorder, capacity: usize) -> Result<State> {
        let mut state = Vec::new();
        for (node, Attention { kv_heads, head_dim, .. }) in self.line.attentions() {
            let shape = [capacity, kv_heads * head_dim];
            state.push((node, [rec.empty(&shape)?, rec.empty(&shape)?]));
        }
        Ok(State(state))
    }

    /// Computes X·Wᵀ for each linear layer, without its bias. `weights`: W of each layer, `[rows, columns]`; `input`:
    /// X, `[tokens, columns]`. Returns `[tokens, rows]` for each layer.
    pub fn project(&self, rec: &mut Recorder, weights: &[Tensor], input: &Tensor) -> Result<Vec<Tensor>> {
        weights.iter().map(|weight| matmul(rec, Orientation::Nt, input, weight)).collect()
    }

    /// Adds the biases to the `products` of the linear layers of `node` and puts the results into the lane. `products`:
    /// X·Wᵀ of each layer, from [`Block::project`]. Drops the input if `node` reads it last.
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
            lane.put(value, LaneTensor::Owned(output));
        }
        self.drop_last_reads(node, lane);
        Ok(())
    }

    /// Runs `nodes` in order. `weights`: returns the weights of the linear layers of a node.
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

    /// Runs the whole block on its one input, the residual stream `hidden`, `[tokens, width]`. Returns the residual
    /// stream after the block, with the same shape.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        weights: &Weights,
        context: &mut Context<'_>,
        hidden: Tensor,
    ) -> Result<Tensor> {
        let mut lane = self.lane();
        lane.put(Value(0), LaneTensor::Owned(hidden));
        self.run(rec, 0..self.line.nodes.len(), |node| &weights[node], &mut lane, context)?;
        lane.take(rec, self.line.outputs[0])
    }

    /// Computes the input of the output matrix from `hidden`, the one input of the block. The block must be a head,
    /// whose only linear layer is the output matrix.
    pub(super) fn output_input(&self, rec: &mut Recorder, hidden: &Tensor) -> Result<Tensor> {
        let output = self.output_node();
        let mut lane = self.lane();
        lane.put(Value(0), LaneTensor::Borrowed(hidden));
        let mut context = Context { ropes: &[], positions: Positions::whole(hidden.shape()[0]), state: None };
        self.run(rec, 0..output, |_| &[], &mut lane, &mut context)?;
        lane.take(rec, self.line.nodes[output].reads[0])
    }

    /// Makes logits of the products of some rows of the output matrix: adds the bias and runs the nodes after the
    /// matrix. `products` and the result: `[tokens, rows]`; `bias`: of these rows. The block must be a head.
    pub(super) fn finish_output(
        &self,
        rec: &mut Recorder,
        mut products: Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        if let Some(bias) = bias {
            add_bias(rec, &mut products, bias)?;
        }
        let output = self.output_node();
        let mut lane = self.lane();
        let mut context = Context { ropes: &[], positions: Positions::whole(products.shape()[0]), state: None };
        lane.put(self.line.nodes[output].makes[0], LaneTensor::Owned(products));
        self.run(rec, output + 1..self.line.nodes.len(), |_| &[], &mut lane, &mut context)?;
        lane.take(rec, self.line.outputs[0])
    }

    /// The bias of the output matrix. The block must be a head.
    pub(super) fn output_bias(&self) -> Option<&Tensor> {
        self.vectors[self.output_node()].iter().flatten().next()
    }

    /// Index of the output matrix among the nodes of a head.
    fn output_node(&self) -> usize {
        self.line.stops().last().unwrap_or(0)
    }

    /// Runs a node that has no linear layers.
    fn step(&self, rec: &mut Recorder, node: usize, lane: &mut Lane<'_>, context: &mut Context<'_>) -> Result<()> {
        let Node { op, reads, makes } = &self.line.nodes[node];
        let made = match op {
            Op::Linears(_) => unreachable!("linear layers are run with their weights"),
            Op::Norm(norm) => self.norm(rec, node, norm, lane)?,
            &Op::Rope { table, head_dim, pairs } => {
                let mut x = self.operand(rec, node, reads[0], lane)?;
                rope(rec, &mut x, &context.ropes[table], head_dim, pairs_of(pairs), context.positions)?;
                x
            }
            &Op::Position { offset, .. } => {
                let mut x = self.operand(rec, node, reads[0], lane)?;
                add_positions(rec, &mut x, self.vector(node), offset, context.positions)?;
                x
            }
            Op::Attention(heads) => self.attention(rec, node, heads, lane, context)?,
            Op::Columns(Columns { period, start, width }) => columns(rec, lane.get(reads[0]), *period, *start, *width)?,
            Op::Activate(activation) => activate(rec, activation_of(*activation), lane.get(reads[0]))?,
            Op::Gate(activation) => gate(rec, activation_of(*activation), lane.get(reads[0]), lane.get(reads[1]))?,
            Op::Add => {
                let mut sum = self.operand(rec, node, reads[0], lane)?;
                add_assign(rec, &mut sum, lane.get(reads[1]))?;
                sum
            }
            Op::Scale(factor) => {
                let mut x = self.operand(rec, node, reads[0], lane)?;
                scale(rec, &mut x, *factor)?;
                x
            }
            Op::Multiply(_) => {
                let mut x = self.operand(rec, node, reads[0], lane)?;
                scale_columns(rec, &mut x, self.vector(node))?;
                x
            }
            Op::Softcap(cap) => {
                let mut x = self.operand(rec, node, reads[0], lane)?;
                softcap(rec, &mut x, *cap)?;
                x
            }
        };
        lane.put(makes[0], LaneTensor::Owned(made));
        self.drop_last_reads(node, lane);
        Ok(())
    }

    /// The one small tensor of a node.
    fn vector(&self, node: usize) -> &Tensor {
        self.vectors[node][0].as_ref().expect("the network loads every tensor of a node")
    }

    /// Returns an operand that the op will overwrite. This is the value itself if `node` reads it last, otherwise a
    /// copy.
    fn operand(&self, rec: &mut Recorder, node: usize, value: Value, lane: &mut Lane<'_>) -> Result<Tensor> {
        if self.last_readers[value.0] == node { lane.take(rec, value) } else { rec.duplicate(lane.get(value)) }
    }

    /// Drops the values that `node` reads last.
    fn drop_last_reads(&self, node: usize, lane: &mut Lane<'_>) {
        let reads = self.line.nodes[node].reads.iter();
        reads.filter(|value| self.last_readers[value.0] == node).for_each(|value| lane.0[value.0] = None);
    }

    /// Runs a norm. If it is narrower than its input, it normalises each head of each token as a row of its own.
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

    /// Runs attention. With a state, it appends the keys and values of the current tokens to those of earlier positions
    /// first.
    fn attention(
        &self,
        rec: &mut Recorder,
        node: usize,
        &Attention { heads, kv_heads, head_dim, window, scale, softcap, alibi }: &Attention,
        lane: &Lane<'_>,
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let [q, k, v] = [0, 1, 2].map(|operand| lane.get(self.line.nodes[node].reads[operand]));
        let heads = Heads { heads, kv_heads, head_dim, window, scale, softcap, alibi };
        let Some(state) = &mut context.state else { return attention(rec, q, k, v, heads, context.positions) };
        let cache = state.0.iter_mut().find(|(number, _)| *number == node);
        let (_, [keys, values]) = cache.expect("a state has a cache for every attention node");
        rec.write_rows(k, keys, context.positions.first)?;
        rec.write_rows(v, values, context.positions.first)?;
        attention(rec, q, keys, values, heads, context.positions)
    }
}

/// Adds to every token of `x` the row of `table` that belongs to its position: row `offset` for position 0. `x`:
/// `[tokens, width]`; `table`: `[rows, width]`.
fn add_positions(
    rec: &mut Recorder,
    x: &mut Tensor,
    table: &Tensor,
    offset: usize,
    positions: Positions,
) -> Result<()> {
    let tokens = x.shape()[0];
    let row = |token: usize| (offset + positions.first + token % positions.seq_len) as u32;
    let rows = rec.upload(&[tokens], (0..tokens).map(row).collect())?;
    let mut learned = rec.empty(x.shape())?;
    embedding::gather(rec, table, 0, &rows, &mut learned)?;
    add_assign(rec, x, &learned)
}

/// The activation as `ops` names it.
fn activation_of(activation: family::Activation) -> Activation {
    match activation {
        family::Activation::Silu => Activation::Silu,
        family::Activation::Gelu => Activation::Gelu,
        family::Activation::GeluTanh => Activation::GeluTanh,
        family::Activation::Relu => Activation::Relu,
        family::Activation::ReluSquared => Activation::ReluSquared,
        family::Activation::Sigmoid => Activation::Sigmoid,
    }
}

/// The pairs of rotary embedding as `ops` names them.
fn pairs_of(pairs: family::Pairs) -> Pairs {
    match pairs {
        family::Pairs::Halves => Pairs::Halves,
        family::Pairs::Neighbours => Pairs::Neighbours,
    }
}
