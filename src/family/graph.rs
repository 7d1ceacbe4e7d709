//! A model as data: a list of blocks, each a straight line of nodes over numbered values.
//!
//! A family file builds this description, `derive` reads off what follows from it, and the engine runs it. A group of linear
//! layers with one input is a node like any other: it is where the pipeline stops to measure, to correct and to quantize.

use std::sync::Arc;

use super::config::rope::Rope;

/// A matrix of a block, `[tokens, width]`, by its number. The inputs of the block come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub usize);

/// The name of a tensor or a module. In a block, `{layer}` stands for the number of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// A name with or without `{layer}` in it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The name in layer `layer`.
    pub fn at(&self, layer: usize) -> String {
        self.0.replace("{layer}", &layer.to_string())
    }

    /// This name with `suffix` behind it.
    pub fn with(&self, suffix: &str) -> Self {
        Self(format!("{}{suffix}", self.0))
    }

    /// The part behind the last full stop.
    fn last(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or(&self.0)
    }
}

/// A linear layer of a block: Y = X·Wᵀ + b.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// Module path, such as `model.layers.{layer}.self_attn.q_proj`.
    pub path: Name,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether a bias of `rows` numbers goes with it.
    pub bias: bool,
}

impl Linear {
    /// Name of the bias, where there is one.
    pub fn bias(&self) -> Option<Name> {
        self.bias.then(|| self.path.with(".bias"))
    }

    /// A short name for progress lines: `q` for `self_attn.q_proj`.
    pub fn label(&self) -> &str {
        let last = self.path.last();
        last.strip_suffix("_proj").unwrap_or(last)
    }

    /// The layer with that number.
    pub fn at(&self, layer: usize) -> LinearSpec {
        LinearSpec { name: self.path.at(layer), rows: self.rows, columns: self.columns, bias: self.bias }
    }
}

/// A linear layer of a model, under its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether a `.bias` of `rows` numbers goes with it.
    pub bias: bool,
}

/// What a norm takes off and divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Divides by the root mean square; has gains (RMSNorm).
    Rms,
    /// Takes the mean off and divides by the standard deviation; has gains and a bias (LayerNorm).
    Layer,
}

/// Normalisation of each token, or of each head of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// What it takes off and divides by.
    pub kind: NormKind,
    /// Module path.
    pub path: Name,
    /// Columns that are normalised together; the width of its input, or that of a head.
    pub width: usize,
    /// ε, added to the mean square.
    pub epsilon: f32,
}

impl Norm {
    /// Names of its tensors: the gains, then the bias of a LayerNorm.
    pub fn tensors(&self) -> Vec<Name> {
        match self.kind {
            NormKind::Rms => vec![self.path.with(".weight")],
            NormKind::Layer => vec![self.path.with(".weight"), self.path.with(".bias")],
        }
    }
}

/// Causal attention of queries to keys and values inside each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// How many of the last keys, its own among them, a query sees; all if `None`.
    pub window: Option<usize>,
}

/// The non-linearity of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x).
    Silu,
}

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Linear layers that read one value; makes one value for each. The pipeline stops here.
    Linears(Vec<Linear>),
    /// Reads a value, makes one of the same width.
    Norm(Norm),
    /// Turns pairs of columns of each head by the angles of the token's position.
    Rope {
        /// Place of the table in [`ModelConfig::ropes`].
        table: usize,
        /// Columns of a head.
        head_dim: usize,
    },
    /// Reads queries, keys and values.
    Attention(Attention),
    /// act(first) · second, element by element.
    Gate(Activation),
    /// First + second.
    Add,
}

/// One step of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Its operands, in the order in which the op names them.
    pub reads: Vec<Value>,
    /// Its results.
    pub makes: Vec<Value>,
}

/// A part of a model that a chunk of tokens passes: a transformer block, or the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Columns of each value.
    pub widths: Vec<usize>,
    /// How many values come from outside, the residual stream first.
    pub inputs: usize,
    /// The steps, in the order in which they run.
    pub nodes: Vec<Node>,
    /// What the next block gets as its inputs.
    pub outputs: Vec<Value>,
}

/// A model: what `config.json` says, as far as this crate needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The name under `model_type`.
    pub model_type: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Name of the embedding, `[vocab_size, hidden_size]`.
    pub embedding: String,
    /// The decoder blocks, in order. Those that are alike share one description.
    pub blocks: Vec<Arc<Block>>,
    /// From the residual stream after the last block to the logits: the final norm, and the output matrix as its last node.
    pub head: Arc<Block>,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// The tables of rotary angles.
    pub ropes: Vec<Rope>,
}
