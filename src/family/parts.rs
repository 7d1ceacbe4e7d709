//! Sublayers that many families share: self-attention and the MLP, with the module names of LLaMA.

use super::build::{Line, NormStyle};
use super::graph::{Activation, Attention, Gains, Pairs, Value};

/// Self-attention with the module names of LLaMA.
#[derive(Debug, Clone, Copy)]
pub(super) struct SelfAttention {
    pub attention: Attention,
    /// Whether q, k and v come from one linear layer, `qkv_proj`.
    pub fused: bool,
    /// Whether the linear layers have biases: q, k and v, and the output.
    pub bias: [bool; 2],
    pub norms: HeadNorms,
    pub rope: Option<Turn>,
}

/// Norms of queries and keys, before they are rotated.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeadNorms {
    None,
    /// One norm for every head, with the weight of a head: `q_norm` and `k_norm`.
    PerHead(NormStyle),
    /// A norm over all heads together: `q_norm` and `k_norm`.
    Whole(NormStyle),
    /// A norm of every head, with gains for each head.
    OwnGains(NormStyle, GainTensors),
}

/// Names the tensors that hold the gains of all heads, and gives the shape of each. Takes the side, `q` or `k`, and the
/// numbers of heads and of columns of a head.
pub(super) type GainTensors = fn(&str, [usize; 2]) -> (Vec<String>, Vec<usize>);

/// Rotary embedding of queries and keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// Indices of the tables of angles for the queries and the keys.
    pub tables: [usize; 2],
    pub pairs: Pairs,
}

impl Turn {
    /// Queries and keys turn by the table at index `table`.
    pub fn halves(table: usize) -> Self {
        Self { tables: [table; 2], pairs: Pairs::Halves }
    }

    /// As [`Turn::halves`], with neighbouring columns as pairs.
    pub fn neighbours(table: usize) -> Self {
        Self { tables: [table; 2], pairs: Pairs::Neighbours }
    }
}

impl SelfAttention {
    /// Separate q, k and v, without biases and norms, rotated by the first table of angles.
    pub fn new(attention: Attention) -> Self {
        let rope = Some(Turn::halves(0));
        Self { attention, fused: false, bias: [false; 2], norms: HeadNorms::None, rope }
    }
}

impl Line {
    /// Self-attention on `x`. Returns the branch, with the width of `hidden` columns.
    pub fn self_attention(&mut self, x: Value, hidden: usize, spec: &SelfAttention) -> Value {
        let SelfAttention { attention, fused, bias: [bias, o_bias], .. } = *spec;
        let (queries, keys) = (attention.queries(), attention.keys());
        let [q, k, v] = if fused {
            let qkv = self.linear(x, "self_attn.qkv_proj", queries + 2 * keys, bias);
            self.split(qkv, [queries, keys, keys])
        } else {
            let paths = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            self.linears(x, [(paths[0], queries, bias), (paths[1], keys, bias), (paths[2], keys, bias)])
        };
        let (q, k) = (self.prepare(q, "q", spec), self.prepare(k, "k", spec));
        let mixed = self.attention(q, k, v, attention);
        self.linear(mixed, "self_attn.o_proj", hidden, o_bias)
    }

    /// Normalises and rotates queries or keys. `side`: `q` or `k`.
    fn prepare(&mut self, x: Value, side: &str, spec: &SelfAttention) -> Value {
        let head_dim = spec.attention.head_dim;
        let path = format!("self_attn.{side}_norm");
        let x = match spec.norms {
            HeadNorms::None => x,
            HeadNorms::PerHead(style) => self.norm_per(x, &path, style, head_dim),
            HeadNorms::Whole(style) => self.norm(x, &path, style),
            HeadNorms::OwnGains(style, tensors) => {
                let (parts, shape) = tensors(side, [self.width(x) / head_dim, head_dim]);
                let x = self.norm_per(x, &path, style.with_gains(Gains::None), head_dim);
                self.multiply(x, &parts, &shape)
            }
        };
        let table = |turn: Turn| turn.tables[usize::from(side == "k")];
        spec.rope.map_or(x, |turn| self.rope(x, table(turn), head_dim, turn.pairs))
    }

    /// The MLP down(act(gate(`x`))·up(`x`)) with `inner` columns inside. Returns the branch, as wide as `x`.
    pub fn gated_mlp(&mut self, x: Value, act: Activation, inner: usize, bias: bool) -> Value {
        let [gate, up] = self.linears(x, [("mlp.gate_proj", inner, bias), ("mlp.up_proj", inner, bias)]);
        let gated = self.gate(act, gate, up);
        self.linear(gated, "mlp.down_proj", self.width(x), bias)
    }

    /// As [`Line::gated_mlp`], with gate and up from one linear layer `gate_up_proj`.
    pub fn fused_mlp(&mut self, x: Value, act: Activation, inner: usize) -> Value {
        let both = self.linear(x, "mlp.gate_up_proj", 2 * inner, false);
        let [gate, up] = self.split(both, [inner; 2]);
        let gated = self.gate(act, gate, up);
        self.linear(gated, "mlp.down_proj", self.width(x), false)
    }

    /// The MLP down(act(up(`x`))) with `inner` columns inside. `paths`: modules of up and down.
    pub fn plain_mlp(&mut self, x: Value, act: Activation, paths: [&str; 2], inner: usize, bias: bool) -> Value {
        let up = self.linear(x, paths[0], inner, bias);
        let active = self.activate(act, up);
        self.linear(active, paths[1], self.width(x), bias)
    }
}
