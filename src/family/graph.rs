//! Describes a model as data: a list of blocks, each a straight line of nodes over numbered values.
//!
//! The file of a family builds this description, `derive` computes what follows from it, and the engine runs it. A
//! group of linear layers with a common input is a node like any other. It is a stop of the pipeline, which measures,
//! corrects and quantizes there.

use std::sync::Arc;

use super::config::rope::Rope;

/// A matrix of a block, `[tokens, width]`, by its index. The inputs of the block come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub usize);

/// The name of a tensor or a module. Inside a block, `{layer}` stands for the number of the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// A name with or without the placeholder `{layer}`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The name in layer `layer`, with the placeholder filled in.
    pub fn at(&self, layer: usize) -> String {
        self.0.replace("{layer}", &layer.to_string())
    }

    /// This name with `suffix` appended.
    pub fn with(&self, suffix: &str) -> Self {
        Self(format!("{}{suffix}", self.0))
    }

    /// The part after the last full stop.
    fn last(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or(&self.0)
    }
}

/// A linear layer of a block, Y = X·Wᵀ + b, with W `[rows, columns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// Module path, such as `model.layers.{layer}.self_attn.q_proj`.
    pub path: Name,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether there is a bias of `rows` numbers.
    pub bias: bool,
}

impl Linear {
    /// Name of the bias, if there is one.
    pub fn bias(&self) -> Option<Name> {
        self.bias.then(|| self.path.with(".bias"))
    }

    /// A short name for progress lines: `q` for `self_attn.q_proj`.
    pub fn label(&self) -> &str {
        let last = self.path.last();
        last.strip_suffix("_proj").unwrap_or(last)
    }

    /// This linear layer in block `layer`.
    pub fn at(&self, layer: usize) -> LinearSpec {
        LinearSpec { name: self.path.at(layer), rows: self.rows, columns: self.columns, bias: self.bias }
    }
}

/// A linear layer of a model, with its full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether there is a `.bias` of `rows` numbers.
    pub bias: bool,
}

/// What a norm subtracts and divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm: divides by the root mean square. Has gains.
    Rms,
    /// LayerNorm: subtracts the mean and divides by the standard deviation. Has gains and a bias.
    Layer,
}

/// Normalisation of each token, or of each head of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// What the norm subtracts and divides by.
    pub kind: NormKind,
    /// Module path.
    pub path: Name,
    /// Columns that are normalised together: the width of the input, or the width of a head.
    pub width: usize,
    /// ε, added to the mean square (or to the variance) before the root is taken.
    pub epsilon: f32,
}

impl Norm {
    /// Names of the tensors: the gains, then the bias of a LayerNorm.
    pub fn tensors(&self) -> Vec<Name> {
        match self.kind {
            NormKind::Rms => vec![self.path.with(".weight")],
            NormKind::Layer => vec![self.path.with(".weight"), self.path.with(".bias")],
        }
    }
}

/// Causal attention from queries to keys and values within each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Sliding window: the number of latest keys that a query sees, its own included. `None` means all.
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
    /// Linear layers that read one value. Each makes one value. The pipeline stops here.
    Linears(Vec<Linear>),
    /// Reads a value and makes one of the same width.
    Norm(Norm),
    /// Rotates pairs of columns of each head by angles that depend on the position of the token.
    Rope {
        /// Index of the table in [`ModelConfig::ropes`].
        table: usize,
        /// Columns of a head.
        head_dim: usize,
    },
    /// Reads queries, keys and values, and makes a value of the width of the queries.
    Attention(Attention),
    /// act(first) · second, element by element.
    Gate(Activation),
    /// First + second, element by element.
    Add,
}

/// One step of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Operands, in the order in which the op names them.
    pub reads: Vec<Value>,
    /// Results.
    pub makes: Vec<Value>,
}

/// A part of a model through which a chunk of tokens passes: a transformer block, or the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Columns of each value, by its index.
    pub widths: Vec<usize>,
    /// Number of values that are inputs. The residual stream is the first.
    pub inputs: usize,
    /// The nodes, in the order in which they run.
    pub nodes: Vec<Node>,
    /// The values that become the inputs of the next block.
    pub outputs: Vec<Value>,
}

/// The description of a model: the content of `config.json`, as far as this crate needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The value of `model_type`.
    pub model_type: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Vocabulary size: rows of the embedding.
    pub vocab_size: usize,
    /// The longest context for which the model was made, in tokens.
    pub max_position_embeddings: usize,
    /// Tensor name of the embedding, `[vocab_size, hidden_size]`.
    pub embedding: String,
    /// The decoder blocks, in order. Blocks that are alike share one description.
    pub blocks: Vec<Arc<Block>>,
    /// The head: from the residual stream after the last block to the logits. It consists of the final norm and, as its
    /// last node, the output matrix.
    pub head: Arc<Block>,
    /// Whether the output matrix is tied to the embedding.
    pub tie_word_embeddings: bool,
    /// The tables of rotary angles.
    pub ropes: Vec<Rope>,
}
