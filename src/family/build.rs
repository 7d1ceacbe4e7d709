//! Builds a model node by node. With it, the file of a family reads like the equations of its block.

use std::sync::Arc;

use super::graph::{
    Activation, Attention, Block, Columns, Factors, Gains, Layout, Linear, Name, Node, Norm, NormKind, Op, Pairs, Value,
};

/// A block under construction. Module paths given to its methods are relative to its prefix.
pub(super) struct Line {
    prefix: Name,
    block: Block,
}

/// What the norms of a model have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NormStyle {
    pub kind: NormKind,
    pub epsilon: f32,
    pub gains: Gains,
    pub bias: bool,
}

impl NormStyle {
    /// RMSNorm with a weight.
    pub fn rms(epsilon: f32) -> Self {
        Self { kind: NormKind::Rms, epsilon, gains: Gains::Plain, bias: false }
    }

    /// LayerNorm with a weight and a bias.
    pub fn layer(epsilon: f32) -> Self {
        Self { kind: NormKind::Layer, epsilon, gains: Gains::Plain, bias: true }
    }

    /// This style with other gains.
    pub fn with_gains(self, gains: Gains) -> Self {
        Self { gains, ..self }
    }

    /// This style without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

/// Builds the blocks of a model: `layers` blocks whose residual stream starts with `width` columns. `prefix`: path of
/// the modules of a block. `build` appends the nodes of block number `layer` and returns the new residual stream. Blocks
/// that turn out alike share one description.
pub(super) fn blocks(
    prefix: &str,
    width: usize,
    layers: usize,
    build: impl Fn(&mut Line, Value, usize) -> Value,
) -> Vec<Arc<Block>> {
    let mut width = width;
    let mut distinct: Vec<Arc<Block>> = Vec::new();
    let mut one = |layer: usize| {
        let (mut line, h) = Line::new(prefix, width);
        let h = build(&mut line, h, layer);
        width = line.width(h);
        let block = line.finish(h);
        if let Some(same) = distinct.iter().find(|same| ***same == block) {
            return same.clone();
        }
        let block = Arc::new(block);
        distinct.push(block.clone());
        block
    };
    (0..layers).map(&mut one).collect()
}

impl Line {
    /// Starts a block whose modules are below `prefix`. Returns it with its residual stream, a value of `width`
    /// columns.
    pub fn new(prefix: &str, width: usize) -> (Self, Value) {
        let block = Block { widths: vec![width], inputs: 1, nodes: Vec::new(), outputs: Vec::new() };
        (Self { prefix: Name::new(prefix), block }, Value(0))
    }

    /// Appends nodes whose module paths are whole, outside the prefix of the block.
    pub fn outside<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
        let prefix = std::mem::replace(&mut self.prefix, Name::new(""));
        let made = build(self);
        self.prefix = prefix;
        made
    }

    /// Columns of a value.
    pub fn width(&self, value: Value) -> usize {
        self.block.widths[value.0]
    }

    /// Appends a node that reads `reads` and makes one value for each of `widths`.
    fn push(&mut self, op: Op, reads: &[Value], widths: &[usize]) -> Vec<Value> {
        let first = self.block.widths.len();
        let makes: Vec<Value> = (first..first + widths.len()).map(Value).collect();
        self.block.widths.extend(widths);
        self.block.nodes.push(Node { op, reads: reads.to_vec(), makes: makes.clone() });
        makes
    }

    /// Appends a node that reads `x` and makes one value of the same width.
    fn map(&mut self, x: Value, op: Op) -> Value {
        self.push(op, &[x], &[self.width(x)])[0]
    }

    /// Linear layers that all read `x`. `layers` has path, outputs and bias (whether there is one) of each. Returns
    /// their outputs.
    pub fn linears<const N: usize>(&mut self, x: Value, layers: [(&str, usize, bool); N]) -> [Value; N] {
        let columns = self.width(x);
        let linears = layers.map(|(path, rows, bias)| Linear {
            path: self.prefix.with(path),
            rows,
            columns,
            bias,
            layout: Layout::Rows,
            quantizable: true,
        });
        let first = self.block.widths.len();
        self.push(Op::Linears(linears.to_vec()), &[x], &layers.map(|(_, rows, _)| rows));
        std::array::from_fn(|linear| Value(first + linear))
    }

    /// One linear layer that reads `x`.
    pub fn linear(&mut self, x: Value, path: &str, rows: usize, bias: bool) -> Value {
        let [y] = self.linears(x, [(path, rows, bias)]);
        y
    }

    /// Changes the linear layers of the last node.
    fn change_last(&mut self, change: impl Fn(&mut Linear)) {
        if let Some(Node { op: Op::Linears(linears), .. }) = self.block.nodes.last_mut() {
            linears.iter_mut().for_each(change);
        }
    }

    /// As [`Line::linear`], for a layer whose weight is stored as `[inputs, outputs]`.
    pub fn transposed_linear(&mut self, x: Value, path: &str, rows: usize, bias: bool) -> Value {
        let y = self.linear(x, path, rows, bias);
        self.change_last(|linear| linear.layout = Layout::Columns);
        y
    }

    /// As [`Line::linear`], for a layer that is not quantized.
    pub fn float_linear(&mut self, x: Value, path: &str, rows: usize, bias: bool) -> Value {
        let y = self.linear(x, path, rows, bias);
        self.change_last(|linear| linear.quantizable = false);
        y
    }

    /// A norm over all columns of `x`.
    pub fn norm(&mut self, x: Value, path: &str, style: NormStyle) -> Value {
        self.norm_per(x, path, style, self.width(x))
    }

    /// A norm over each run of `width` columns of `x`, such as the columns of a head.
    pub fn norm_per(&mut self, x: Value, path: &str, style: NormStyle, width: usize) -> Value {
        let NormStyle { kind, epsilon, gains, bias } = style;
        self.map(x, Op::Norm(Norm { kind, path: self.prefix.with(path), width, epsilon, gains, bias }))
    }

    /// Multiplies the columns of `x` by stored factors: those of the tensors `parts`, `shape` each.
    pub fn multiply(&mut self, x: Value, parts: &[String], shape: &[usize]) -> Value {
        let parts = parts.iter().map(|part| self.prefix.with(part)).collect();
        self.map(x, Op::Multiply(Factors { parts, shape: shape.to_vec() }))
    }

    /// Rotary position embedding of `x`. `table`: index of the table of angles in the model.
    pub fn rope(&mut self, x: Value, table: usize, head_dim: usize, pairs: Pairs) -> Value {
        self.map(x, Op::Rope { table, head_dim, pairs })
    }

    /// Adds to `x` the learned vectors of the positions: `rows` rows, of which the first `offset` belong to no position.
    pub fn positions(&mut self, x: Value, table: &str, rows: usize, offset: usize) -> Value {
        let table = self.prefix.with(table);
        self.map(x, Op::Position { table, rows, offset })
    }

    /// Attention with the queries `q`, keys `k` and values `v`.
    pub fn attention(&mut self, q: Value, k: Value, v: Value, attention: Attention) -> Value {
        self.push(Op::Attention(attention), &[q, k, v], &[self.width(q)])[0]
    }

    /// Of every run of `period` columns of `x`, those from `start` to `start + width`.
    pub fn columns(&mut self, x: Value, period: usize, start: usize, width: usize) -> Value {
        let taken = self.width(x) / period * width;
        self.push(Op::Columns(Columns { period, start, width }), &[x], &[taken])[0]
    }

    /// Cuts `x` into pieces of the given widths, which lie side by side in every run of that many columns together.
    pub fn split<const N: usize>(&mut self, x: Value, widths: [usize; N]) -> [Value; N] {
        let period = widths.iter().sum();
        let mut start = 0;
        widths.map(|width| {
            start += width;
            self.columns(x, period, start - width, width)
        })
    }

    /// act(`x`), element by element.
    pub fn activate(&mut self, act: Activation, x: Value) -> Value {
        self.map(x, Op::Activate(act))
    }

    /// The gated product act(`gate`)·`up`, element by element.
    pub fn gate(&mut self, act: Activation, gate: Value, up: Value) -> Value {
        self.push(Op::Gate(act), &[gate, up], &[self.width(gate)])[0]
    }

    /// The sum `a` + `b`.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.push(Op::Add, &[a, b], &[self.width(a)])[0]
    }

    /// `x` times a number. Adds no node for 1.
    pub fn scale(&mut self, x: Value, factor: f32) -> Value {
        if factor == 1.0 { x } else { self.map(x, Op::Scale(factor)) }
    }

    /// c·tanh(`x`/c), or `x` itself if there is no `cap` c.
    pub fn softcap(&mut self, x: Value, cap: Option<f32>) -> Value {
        cap.map_or(x, |cap| self.map(x, Op::Softcap(cap)))
    }

    /// Completes the block. Its output is `residual`.
    pub fn finish(mut self, residual: Value) -> Block {
        self.block.outputs = vec![residual];
        self.block
    }
}
