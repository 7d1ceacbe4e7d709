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

    /// The name, with the placeholder if it has one.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// This name with another beginning, the first of `names` that fits. `names`: pairs of an old and a new beginning.
    pub(super) fn renamed(&self, names: &[(&str, &str)]) -> Self {
        let renamed = names.iter().find_map(|(old, new)| Some(format!("{new}{}", self.0.strip_prefix(old)?)));
        renamed.map_or_else(|| self.clone(), Self)
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
    /// How the weight is stored.
    pub layout: Layout,
    /// Whether the layer is quantized unless the user says otherwise. If not, it keeps its original weight.
    pub quantizable: bool,
}

/// How the weight of a linear layer is stored in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[outputs, inputs]`, as torch's `Linear` has it.
    Rows,
    /// `[inputs, outputs]`, as GPT-2's `Conv1D` has it.
    Columns,
}

impl Linear {
    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.rows as u64 * self.columns as u64
    }

    /// Name of the bias, if there is one.
    pub fn bias(&self) -> Option<Name> {
        self.bias.then(|| self.path.with(".bias"))
    }

    /// A short name for progress lines: `q` for `self_attn.q_proj`, but `c_proj` for `attn.c_proj`.
    pub fn label(&self) -> &str {
        let last = self.path.last();
        last.strip_suffix("_proj").filter(|&short| short != "c").unwrap_or(last)
    }

    /// This linear layer in block `layer`.
    pub fn at(&self, layer: usize) -> LinearSpec {
        let Self { rows, columns, bias, layout, quantizable, .. } = *self;
        LinearSpec { name: self.path.at(layer), rows, columns, bias, layout, quantizable }
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
    /// How the weight is stored.
    pub layout: Layout,
    /// Whether the layer is quantized unless the user says otherwise.
    pub quantizable: bool,
}

impl LinearSpec {
    /// A layer with a weight of `[rows, columns]`, stored as `[rows, columns]`, and no bias.
    pub fn new(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        Self { name: name.into(), rows, columns, bias: false, layout: Layout::Rows, quantizable: true }
    }

    /// Name of the tensor that holds the weight.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Shape of the stored weight.
    pub fn stored_shape(&self) -> Vec<usize> {
        match self.layout {
            Layout::Rows => vec![self.rows, self.columns],
            Layout::Columns => vec![self.columns, self.rows],
        }
    }
}

/// What a norm subtracts and divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm: divides by the root mean square.
    Rms,
    /// LayerNorm: subtracts the mean and divides by the standard deviation.
    Layer,
}

/// What a norm multiplies by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gains {
    /// Nothing: the norm has no weight.
    None,
    /// The stored weight.
    Plain,
    /// 1 + the stored weight.
    PlusOne,
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
    /// What the normalised columns are multiplied by.
    pub gains: Gains,
    /// Whether a bias is added in the end.
    pub bias: bool,
}

impl Norm {
    /// Name of the stored weight, if there is one.
    pub fn weight(&self) -> Option<Name> {
        (self.gains != Gains::None).then(|| self.path.with(".weight"))
    }

    /// Name of the bias, if there is one.
    pub fn bias(&self) -> Option<Name> {
        self.bias.then(|| self.path.with(".bias"))
    }

    /// Names of the tensors: the weight, then the bias.
    pub fn tensors(&self) -> Vec<Name> {
        self.weight().into_iter().chain(self.bias()).collect()
    }
}

/// Factors of the columns of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factors {
    /// The tensors that hold them, one after the other.
    pub parts: Vec<Name>,
    /// Shape of each tensor. All together they have one number per column, or one number for all columns.
    pub shape: Vec<usize>,
}

/// Causal attention from queries to keys and values within each sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Sliding window: the number of latest keys that a query sees, its own included. `None` means all.
    pub window: Option<usize>,
    /// Factor of the products of queries and keys, in most models 1/√head_dim.
    pub scale: f32,
    /// The bound c of c·tanh(score/c), which replaces every score.
    pub softcap: Option<f32>,
    /// Factor of ALiBi's bias. Head h adds factor·slope(h)·(j − i) to the score of query i and key j.
    pub alibi: Option<f32>,
}

impl Attention {
    /// Attention of all earlier tokens, with scores multiplied by 1/√head_dim.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { heads, kv_heads, head_dim, window: None, scale, softcap: None, alibi: None }
    }

    /// Columns of the queries of all heads together.
    pub fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys of all heads together, and also of the values.
    pub fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// A non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), with the distribution function Φ of the normal distribution.
    Gelu,
    /// GELU with Φ approximated by a hyperbolic tangent.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
    /// σ(x).
    Sigmoid,
}

/// The two columns of a head that rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Column i and column i + rotated/2.
    Halves,
    /// Columns 2i and 2i + 1.
    Neighbours,
}

/// Some columns of a value: of every run of `period` columns, those from `start` to `start + width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// Columns of a run. The runs lie side by side.
    pub period: usize,
    /// First column in each run.
    pub start: usize,
    /// Columns taken from each run.
    pub width: usize,
}

impl Columns {
    /// The column of the value from which column `column` of the selection is taken.
    pub fn source(&self, column: usize) -> usize {
        column / self.width * self.period + self.start + column % self.width
    }

    /// Whether column `column` of the value is taken.
    pub fn contains(&self, column: usize) -> bool {
        (self.start..self.start + self.width).contains(&(column % self.period))
    }
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
        /// The columns that turn together.
        pairs: Pairs,
    },
    /// Adds a learned vector of each position: row `position + offset` of a stored table `[rows, width]`.
    Position {
        /// Name of the table.
        table: Name,
        /// Rows of the table.
        rows: usize,
        /// Rows before that of the first position.
        offset: usize,
    },
    /// Reads queries, keys and values, and makes a value of the width of the queries.
    Attention(Attention),
    /// Takes some columns of a value.
    Columns(Columns),
    /// act(x), element by element.
    Activate(Activation),
    /// act(first) · second, element by element.
    Gate(Activation),
    /// First + second, element by element.
    Add,
    /// Multiplies by a number.
    Scale(f32),
    /// Multiplies each column by a stored factor.
    Multiply(Factors),
    /// c·tanh(x/c) with the number c, element by element.
    Softcap(f32),
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
    /// Width of the embedding, and of what the head reads.
    pub hidden_size: usize,
    /// Vocabulary size: rows of the embedding.
    pub vocab_size: usize,
    /// The longest context for which the model was made, in tokens.
    pub max_position_embeddings: usize,
    /// Tensor name of the embedding, `[vocab_size, hidden_size]`.
    pub embedding: String,
    /// The decoder blocks, in order. Blocks that are alike share one description.
    pub blocks: Vec<Arc<Block>>,
    /// The head: from the residual stream after the last block to the logits. Its only linear layer is the output
    /// matrix. The nodes after it act on each logit alone.
    pub head: Arc<Block>,
    /// Whether the output matrix is tied to the embedding.
    pub tie_word_embeddings: bool,
    /// The tables of rotary angles.
    pub ropes: Vec<Rope>,
    /// Keys of `config.json` that no reader asked for and whose effect is not known, in file order. A key inside an
    /// object has the name of the object before it.
    pub unknown_keys: Vec<String>,
}
