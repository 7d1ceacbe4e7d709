//! Builds a block node by node. With it, the file of a family reads like the equations of its block.

use super::graph::{Activation, Attention, Block, Linear, Name, Node, Norm, NormKind, Op, Value};

/// A block under construction. Module paths given to its methods are relative to its prefix.
pub(super) struct Line {
    prefix: Name,
    block: Block,
}

impl Line {
    /// Starts a block whose modules are below `prefix`. Returns it with its residual stream, a value of `width`
    /// columns.
    pub fn new(prefix: &str, width: usize) -> (Self, Value) {
        let block = Block { widths: vec![width], inputs: 1, nodes: Vec::new(), outputs: Vec::new() };
        (Self { prefix: Name::new(prefix), block }, Value(0))
    }

    fn width(&self, value: Value) -> usize {
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

    /// Linear layers that all read `x`. `layers` has path, outputs and bias (whether there is one) of each. Returns
    /// their outputs.
    pub fn linears<const N: usize>(&mut self, x: Value, layers: [(&str, usize, bool); N]) -> [Value; N] {
        let columns = self.width(x);
        let linears = layers.map(|(path, rows, bias)| Linear { path: self.prefix.with(path), rows, columns, bias });
        let first = self.block.widths.len();
        self.push(Op::Linears(linears.to_vec()), &[x], &layers.map(|(_, rows, _)| rows));
        std::array::from_fn(|linear| Value(first + linear))
    }

    /// One linear layer that reads `x`.
    pub fn linear(&mut self, x: Value, path: &str, rows: usize, bias: bool) -> Value {
        let [y] = self.linears(x, [(path, rows, bias)]);
        y
    }

    /// A norm over all columns of `x`. `style`: kind of norm and ε.
    pub fn norm(&mut self, x: Value, path: &str, style: (NormKind, f32)) -> Value {
        self.norm_per(x, path, style, self.width(x))
    }

    /// A norm over each run of `width` columns of `x`, such as the columns of a head.
    pub fn norm_per(&mut self, x: Value, path: &str, (kind, epsilon): (NormKind, f32), width: usize) -> Value {
        let norm = Norm { kind, path: self.prefix.with(path), width, epsilon };
        self.push(Op::Norm(norm), &[x], &[self.width(x)])[0]
    }

    /// Rotary position embedding of `x`. `table`: index of the table of angles in the model.
    pub fn rope(&mut self, x: Value, table: usize, head_dim: usize) -> Value {
        self.push(Op::Rope { table, head_dim }, &[x], &[self.width(x)])[0]
    }

    /// Attention with the queries `q`, keys `k` and values `v`.
    pub fn attention(&mut self, q: Value, k: Value, v: Value, attention: Attention) -> Value {
        self.push(Op::Attention(attention), &[q, k, v], &[self.width(q)])[0]
    }

    /// The gated product act(`gate`)·`up`, element by element.
    pub fn gate(&mut self, act: Activation, gate: Value, up: Value) -> Value {
        self.push(Op::Gate(act), &[gate, up], &[self.width(gate)])[0]
    }

    /// The sum `a` + `b`.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.push(Op::Add, &[a, b], &[self.width(a)])[0]
    }

    /// Completes the block. Its output is `residual`.
    pub fn finish(mut self, residual: Value) -> Block {
        self.block.outputs = vec![residual];
        self.block
    }
}
