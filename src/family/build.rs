//! Builds a block node by node, so that a family file reads like the equations of its block.

use super::graph::{Activation, Attention, Block, Linear, Name, Node, Norm, NormKind, Op, Value};

/// A block in the making. Paths given to its methods are relative to its prefix.
pub(super) struct Line {
    prefix: Name,
    block: Block,
}

impl Line {
    /// A block whose modules are below `prefix`, and its residual stream of `width` columns.
    pub fn new(prefix: &str, width: usize) -> (Self, Value) {
        let block = Block { widths: vec![width], inputs: 1, nodes: Vec::new(), outputs: Vec::new() };
        (Self { prefix: Name::new(prefix), block }, Value(0))
    }

    fn width(&self, value: Value) -> usize {
        self.block.widths[value.0]
    }

    fn push(&mut self, op: Op, reads: &[Value], widths: &[usize]) -> Vec<Value> {
        let first = self.block.widths.len();
        let makes: Vec<Value> = (first..first + widths.len()).map(Value).collect();
        self.block.widths.extend(widths);
        self.block.nodes.push(Node { op, reads: reads.to_vec(), makes: makes.clone() });
        makes
    }

    /// Linear layers that read `x`: the path, the outputs, and whether there is a bias, of each.
    pub fn linears<const N: usize>(&mut self, x: Value, layers: [(&str, usize, bool); N]) -> [Value; N] {
        let columns = self.width(x);
        let linears = layers.map(|(path, rows, bias)| Linear { path: self.prefix.with(path), rows, columns, bias });
        let first = self.block.widths.len();
        self.push(Op::Linears(linears.to_vec()), &[x], &layers.map(|(_, rows, _)| rows));
        std::array::from_fn(|linear| Value(first + linear))
    }

    /// One linear layer.
    pub fn linear(&mut self, x: Value, path: &str, rows: usize, bias: bool) -> Value {
        let [y] = self.linears(x, [(path, rows, bias)]);
        y
    }

    /// A norm over the whole of `x`. `style`: its kind and ε.
    pub fn norm(&mut self, x: Value, path: &str, style: (NormKind, f32)) -> Value {
        self.norm_per(x, path, style, self.width(x))
    }

    /// A norm over every `width` columns of `x`.
    pub fn norm_per(&mut self, x: Value, path: &str, (kind, epsilon): (NormKind, f32), width: usize) -> Value {
        let norm = Norm { kind, path: self.prefix.with(path), width, epsilon };
        self.push(Op::Norm(norm), &[x], &[self.width(x)])[0]
    }

    /// The rotary embedding of the model's table number `table`.
    pub fn rope(&mut self, x: Value, table: usize, head_dim: usize) -> Value {
        self.push(Op::Rope { table, head_dim }, &[x], &[self.width(x)])[0]
    }

    /// Attention of the queries `q` to the keys `k` and values `v`.
    pub fn attention(&mut self, q: Value, k: Value, v: Value, attention: Attention) -> Value {
        self.push(Op::Attention(attention), &[q, k, v], &[self.width(q)])[0]
    }

    /// act(`gate`)·`up`.
    pub fn gate(&mut self, act: Activation, gate: Value, up: Value) -> Value {
        self.push(Op::Gate(act), &[gate, up], &[self.width(gate)])[0]
    }

    /// `a` + `b`.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.push(Op::Add, &[a, b], &[self.width(a)])[0]
    }

    /// The block, whose output is `residual`.
    pub fn finish(mut self, residual: Value) -> Block {
        self.block.outputs = vec![residual];
        self.block
    }
}
