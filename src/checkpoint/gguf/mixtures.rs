//! The type of each tensor in a file of llama.cpp's named mixtures, such as Q4_K_M.
//!
//! The rules are those of `llama_tensor_get_type` in llama.cpp of 2026 for a run without an importance matrix. Two of
//! them differ with such a matrix: Q4_0 and Q5_0 then take Q4_1 and Q5_1 for `ffn_down` in the first eighth of the layers,
//! and IQ4_NL takes no Q5_K there. llama.cpp's own quantizer refuses Q2_K_S without a matrix.

use std::fmt;

use super::types::BlockType;

/// A recipe that gives each tensor of a model a type, by llama.cpp's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mixture {
    /// All F32.
    F32,
    /// Matrices in F16.
    F16,
    /// Matrices in BF16.
    Bf16,
    /// Matrices in Q8_0.
    Q8_0,
    /// Q4_0, with the output matrix in Q6_K.
    Q4_0,
    /// Q4_1, with the output matrix in Q6_K.
    Q4_1,
    /// Q5_0, with the output matrix in Q6_K.
    Q5_0,
    /// Q5_1, with the output matrix in Q6_K.
    Q5_1,
    /// Q2_0, with the token embedding in Q4_K and the output matrix in Q6_K.
    Q2_0,
    /// IQ4_NL, with some matrices in Q5_K and the output matrix in Q6_K.
    Iq4Nl,
    /// Stacked experts in MXFP4 and all else in Q8_0.
    Mxfp4Moe,
    /// Q2_K with Q3_K and Q4_K.
    Q2K,
    /// Q2_K with fewer exceptions.
    Q2KS,
    /// Q3_K with few exceptions.
    Q3KS,
    /// Q3_K with Q4_K and Q5_K.
    Q3KM,
    /// Q3_K with Q5_K.
    Q3KL,
    /// Q4_K with a few matrices in Q5_K.
    Q4KS,
    /// Q4_K with half of the values and of `ffn_down` in Q6_K.
    Q4KM,
    /// Q5_K with few exceptions.
    Q5KS,
    /// Q5_K with half of the values and of `ffn_down` in Q6_K.
    Q5KM,
    /// Q6_K.
    Q6K,
}

/// What a tensor is in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding, or a token embedding per layer.
    TokenEmbedding,
    /// The output matrix.
    Output,
    /// The queries of an attention.
    Query,
    /// Its keys.
    Key,
    /// Its values, also where one matrix makes queries, keys and values, or keys and values.
    Value,
    /// Its output.
    AttentionOutput,
    /// The gate of a feed-forward layer.
    Gate,
    /// Its matrix beside the gate, or its first matrix.
    Up,
    /// Its last matrix.
    Down,
    /// Any other.
    Other,
}

/// What the choice of types depends on in a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// The architecture by its name in the file, such as "llama".
    pub architecture: &'a str,
    /// Number of layers.
    pub layers: usize,
    /// Whether the token embedding is also the output matrix.
    pub tied: bool,
    /// Query heads per key and value head in the first layer, 0 if that layer has no attention.
    pub heads_per_kv_head: usize,
    /// Number of experts; 0 or 1 in a model without.
    pub experts: usize,
    /// The layers that have a tensor in the role of values, ascending.
    pub value_layers: &'a [usize],
}

/// What the choice of a type depends on in a tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorFacts {
    /// What it is.
    pub role: Role,
    /// The number of its layer, from 0. Any number for a tensor outside layers.
    pub layer: usize,
    /// Its last dimension: the inputs of a matrix.
    pub columns: usize,
    /// Whether it has three dimensions, as the matrices of all experts have.
    pub stacked: bool,
}

/// Fragments of the names of matrices that stay as they are: norms, routers, short convolutions, positions, and small
/// matrices of single architectures.
const NOT_QUANTIZED: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    "position_embd",
];

/// Whether llama.cpp quantizes the tensor `name` with so many dimensions. It stores others as they are in the source; for
/// norms and biases that is F32.
pub fn is_quantized(name: &str, dimensions: usize) -> bool {
    let kept = NOT_QUANTIZED.iter().any(|fragment| name.contains(fragment)) || name == "token_types.weight";
    dimensions >= 2 && name.ends_with("weight") && !kept
}

impl Role {
    /// The role of a tensor by its name in the file, such as `blk.0.attn_q.weight`.
    pub fn of(name: &str) -> Self {
        const FRAGMENTS: [(&str, Role); 9] = [
            ("attn_qkv.weight", Role::Value),
            ("attn_kv_b.weight", Role::Value),
            ("attn_v.weight", Role::Value),
            ("attn_k.weight", Role::Key),
            ("attn_q.weight", Role::Query),
            ("attn_output.weight", Role::AttentionOutput),
            ("ffn_up", Role::Up),
            ("ffn_gate", Role::Gate),
            ("ffn_down", Role::Down),
        ];
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::TokenEmbedding,
            _ => {
                let found = FRAGMENTS.iter().find(|(fragment, _)| name.contains(fragment));
                found.map_or(Self::Other, |&(_, role)| role)
            }
        }
    }
}

/// A row of the table of mixtures: the name, the number of `general.file_type`, and the type of most matrices.
type Row = (&'static str, u32, BlockType);

impl Mixture {
    /// All mixtures, from many bits to few within each kind.
    pub const ALL: [Self; 21] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5KM,
        Self::Q5KS,
        Self::Q4KM,
        Self::Q4KS,
        Self::Q3KL,
        Self::Q3KM,
        Self::Q3KS,
        Self::Q2K,
        Self::Q2KS,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
        Self::Iq4Nl,
        Self::Mxfp4Moe,
        Self::Q2_0,
    ];

    /// The table.
    const fn row(self) -> Row {
        match self {
            Self::F32 => ("F32", 0, BlockType::F32),
            Self::F16 => ("F16", 1, BlockType::F16),
            Self::Bf16 => ("BF16", 32, BlockType::Bf16),
            Self::Q8_0 => ("Q8_0", 7, BlockType::Q8_0),
            Self::Q4_0 => ("Q4_0", 2, BlockType::Q4_0),
            Self::Q4_1 => ("Q4_1", 3, BlockType::Q4_1),
            Self::Q5_0 => ("Q5_0", 8, BlockType::Q5_0),
            Self::Q5_1 => ("Q5_1", 9, BlockType::Q5_1),
            Self::Q2_0 => ("Q2_0", 41, BlockType::Q2_0),
            Self::Iq4Nl => ("IQ4_NL", 25, BlockType::Iq4Nl),
            Self::Mxfp4Moe => ("MXFP4_MOE", 38, BlockType::Mxfp4),
            Self::Q2K => ("Q2_K", 10, BlockType::Q2K),
            Self::Q2KS => ("Q2_K_S", 21, BlockType::Q2K),
            Self::Q3KS => ("Q3_K_S", 11, BlockType::Q3K),
            Self::Q3KM => ("Q3_K_M", 12, BlockType::Q3K),
            Self::Q3KL => ("Q3_K_L", 13, BlockType::Q3K),
            Self::Q4KS => ("Q4_K_S", 14, BlockType::Q4K),
            Self::Q4KM => ("Q4_K_M", 15, BlockType::Q4K),
            Self::Q5KS => ("Q5_K_S", 16, BlockType::Q5K),
            Self::Q5KM => ("Q5_K_M", 17, BlockType::Q5K),
            Self::Q6K => ("Q6_K", 18, BlockType::Q6K),
        }
    }

    /// The mixture called `name` in upper or lower case, if there is one. As in llama.cpp, Q3_K, Q4_K and Q5_K are short
    /// for the mixtures with M.
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let long = match upper.as_str() {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{upper}_M"),
            _ => upper,
        };
        Self::ALL.into_iter().find(|mixture| mixture.name() == long)
    }

    /// llama.cpp's name, such as "Q4_K_M".
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The value of `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.row().1
    }

    /// The type of most matrices.
    pub fn default_type(self) -> BlockType {
        self.row().2
    }

    /// Bits per code of the type of most matrices; 8 if they are plain floats.
    pub fn code_bits(self) -> u32 {
        self.default_type().grid().map_or(8, |grid| grid.codes.ilog2())
    }

    /// The type of a tensor for which [`is_quantized`] holds.
    ///
    /// Where the rows are no whole blocks of the type, the result is a type of about as many bits with smaller blocks, or
    /// F16 if rows are no multiple of 32. For types without a replacement, llama.cpp's own quantizer stops with an error
    /// instead of F16.
    pub fn block_type(self, model: &ModelFacts<'_>, tensor: &TensorFacts) -> BlockType {
        match self.default_type().grid() {
            None => self.default_type(),
            Some(_) => fitting(self.wanted(model, tensor), tensor.columns),
        }
    }

    /// The type of a tensor, whatever its width.
    fn wanted(self, model: &ModelFacts<'_>, tensor: &TensorFacts) -> BlockType {
        let default = self.default_type();
        match tensor.role {
            Role::Output => self.output_type(model, tensor.columns),
            Role::TokenEmbedding if model.tied => self.output_type(model, tensor.columns),
            _ if self == Self::Mxfp4Moe && !tensor.stacked => BlockType::Q8_0,
            _ if self == Self::Mxfp4Moe => default,
            Role::TokenEmbedding if self == Self::Q2_0 => BlockType::Q4K,
            Role::Value => self.value_type(model, tensor.layer),
            Role::Key if model.experts == 8 => BlockType::Q8_0,
            Role::Down => self.down_type(model, tensor.layer),
            Role::AttentionOutput => self.attention_output_type(model),
            _ => default,
        }
    }

    /// The type of the output matrix.
    fn output_type(self, model: &ModelFacts<'_>, columns: usize) -> BlockType {
        let default = self.default_type();
        let eight = matches!(self, Self::Mxfp4Moe | Self::Q8_0) || model.is_falcon();
        if eight || !columns.is_multiple_of(default.block_weights()) { BlockType::Q8_0 } else { BlockType::Q6K }
    }

    /// The type of the values of an attention.
    fn value_type(self, model: &ModelFacts<'_>, layer: usize) -> BlockType {
        // llama.cpp counts the tensors of this role, not the layers. Matrices that make queries, keys and values at once
        // are among them; rules of their own for them stand in its source behind these and are never reached.
        let (index, count) = (model.value_layers.partition_point(|&other| other < layer), model.value_layers.len());
        let grouped = model.heads_per_kv_head >= 4;
        let chosen = match self {
            Self::Q2K if !grouped => BlockType::Q3K,
            Self::Q2K | Self::Q2KS if grouped => BlockType::Q4K,
            Self::Q3KM if index >= 2 => BlockType::Q4K,
            Self::Q3KM | Self::Q3KL => BlockType::Q5K,
            Self::Iq4Nl if grouped => BlockType::Q5K,
            Self::Q4KM | Self::Q5KM if gets_more_bits(index, count) => BlockType::Q6K,
            Self::Q4KS if index < 4 => BlockType::Q5K,
            _ => self.default_type(),
        };
        match chosen {
            _ if model.experts == 8 => BlockType::Q8_0,
            BlockType::Q3K | BlockType::Q4K if model.is_70b() => BlockType::Q5K,
            _ => chosen,
        }
    }

    /// The type of the last matrix of a feed-forward layer.
    fn down_type(self, model: &ModelFacts<'_>, layer: usize) -> BlockType {
        let (first_eighth, first_sixteenth) = (layer < model.layers / 8, layer < model.layers / 16);
        let more = gets_more_bits(layer, model.layers);
        let falcon = model.is_falcon();
        match self {
            Self::Q2K => BlockType::Q3K,
            Self::Q2KS if first_eighth => BlockType::Q4K,
            Self::Q3KM if first_sixteenth => BlockType::Q5K,
            Self::Q3KM if !falcon || more => BlockType::Q4K,
            Self::Q3KL if falcon => BlockType::Q4K,
            Self::Q3KL => BlockType::Q5K,
            Self::Q4KM if falcon && first_sixteenth => BlockType::Q6K,
            Self::Q4KM if falcon && more => BlockType::Q5K,
            Self::Q4KM if !falcon && more => BlockType::Q6K,
            Self::Q5KM if more => BlockType::Q6K,
            Self::Q4KS if !falcon && first_eighth => BlockType::Q5K,
            Self::Iq4Nl if first_eighth => BlockType::Q5K,
            _ => self.default_type(),
        }
    }

    /// The type of the output of an attention.
    fn attention_output_type(self, model: &ModelFacts<'_>) -> BlockType {
        let default = self.default_type();
        if model.is_falcon() {
            return if self == Self::Q3KL { BlockType::Q4K } else { default };
        }
        match self {
            Self::Q2K | Self::Q3KS | Self::Q3KM | Self::Iq4Nl | Self::Q4KS | Self::Q4KM if model.experts == 8 => {
                BlockType::Q5K
            }
            _ if model.experts == 8 => default,
            Self::Q2K => BlockType::Q3K,
            Self::Q3KM => BlockType::Q4K,
            Self::Q3KL => BlockType::Q5K,
            _ => default,
        }
    }
}

impl ModelFacts<'_> {
    fn is_falcon(&self) -> bool {
        self.architecture == "falcon"
    }

    /// Whether llama.cpp takes the model for one of 70 billion weights.
    fn is_70b(&self) -> bool {
        match self.architecture {
            "llama" => self.layers == 80 && self.heads_per_kv_head > 1,
            "qwen2" | "deci" => self.layers == 80,
            "jais2" => self.layers == 68,
            _ => false,
        }
    }
}

/// Whether a layer is in the first or the last eighth, or a third one between them.
fn gets_more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The type itself if rows of `columns` weights are whole blocks, else the type that replaces it.
fn fitting(block_type: BlockType, columns: usize) -> BlockType {
    if columns.is_multiple_of(block_type.block_weights()) {
        return block_type;
    }
    let smaller = match block_type {
        BlockType::Q2_0 | BlockType::Q2K | BlockType::Q3K => BlockType::Q4_0,
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K => BlockType::Q8_0,
        _ => BlockType::F16,
    };
    if columns.is_multiple_of(smaller.block_weights()) { smaller } else { BlockType::F16 }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
