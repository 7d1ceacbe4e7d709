//! A transformer block as four stages: each a group of linears that read one tensor, and the ops up to the next.
//!
//! The pipeline stops between `project` and `fold`, and between stages, to measure and to quantize; evaluation runs
//! straight through. So every linear runs once per stream and token, and between stages a stream is two tensors.
//! Text is generated with the same stages; its tokens come in pieces, and a cache keeps their keys and values.

use crate::Result;
use crate::device::Recorder;
use crate::family::ModelConfig;
use crate::ops::Positions;
use crate::ops::add::{add_assign, add_bias};
use crate::ops::attention::{Heads, attention};
use crate::ops::matmul::{Orientation, matmul};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::rope;
use crate::ops::silu_mul::silu_mul;
use crate::tensor::Tensor;

/// A group of linears with the same input, in execution order (algorithms.md §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// q, k, v: read the normalised hidden state.
    Attention,
    /// o: reads the heads' outputs.
    Output,
    /// gate, up: read the normalised hidden state.
    GateUp,
    /// down: reads SiLU(gate)·up.
    Down,
}

impl Stage {
    /// All stages, in execution order.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::GateUp, Self::Down];

    /// Which of the block's seven linears belong here, as indices into `ModelConfig::block_linears`.
    pub fn linears(self) -> std::ops::Range<usize> {
        match self {
            Self::Attention => 0..3,
            Self::Output => 3..4,
            Self::GateUp => 4..6,
            Self::Down => 6..7,
        }
    }

    /// Whether what its linears make is added to the residual stream.
    pub fn changes_hidden(self) -> bool {
        matches!(self, Self::Output | Self::Down)
    }

    /// What makes the input of this stage; `None` where one channel of it comes from several places, or feeds several.
    pub fn source(self, config: &ModelConfig) -> Option<InputSource> {
        match self {
            Self::Attention => Some(InputSource::Norm("input_layernorm")),
            // Attention mixes the rows of one head over the tokens; but heads that share values would share channels.
            Self::Output if config.num_key_value_heads == config.num_attention_heads => Some(InputSource::Linear(2)),
            Self::Output => None,
            Self::GateUp => Some(InputSource::Norm("post_attention_layernorm")),
            Self::Down => Some(InputSource::Linear(5)),
        }
    }

    /// Whether its linears read the residual stream through a norm, rather than what the stage before has made.
    pub fn begins_with_norm(self) -> bool {
        matches!(self, Self::Attention | Self::GateUp)
    }

    /// A short name for progress lines.
    pub fn label(self) -> &'static str {
        match self {
            Self::Attention => "q, k, v",
            Self::Output => "o",
            Self::GateUp => "gate, up",
            Self::Down => "down",
        }
    }
}

/// What has one number, or one row, for each input channel of a stage: divided by s, it divides the channel by s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputSource {
    /// The norm of that name in the block.
    Norm(&'static str),
    /// A linear with its bias, as an index into `ModelConfig::block_linears`.
    Linear(usize),
}

/// What a block holds beside its linear weights: both streams share it.
#[derive(Debug)]
pub struct Block {
    pub(super) attention_norm: Tensor,
    pub(super) mlp_norm: Tensor,
    /// Qwen3: norms of each head's query and key.
    pub(super) head_norms: Option<[Tensor; 2]>,
    pub(super) biases: [Option<Tensor>; 7],
    pub(super) heads: Heads,
    pub(super) epsilon: f32,
}

/// One stream's tokens of one chunk, between two stages.
#[derive(Debug)]
pub struct Lane {
    /// The residual stream, `[tokens, hidden]`.
    pub hidden: Tensor,
    /// What the next stage's linears read, `[tokens, columns]`; of no meaning before a stage that begins with a norm.
    pub input: Tensor,
}

/// What attention needs beside the tokens in hand.
#[derive(Debug)]
pub struct Context<'a> {
    /// Of [`super::rope::table`], uploaded.
    pub rope_table: &'a Tensor,
    /// Where the tokens stand.
    pub positions: Positions,
    /// The block's keys and values of all earlier positions, which those of the tokens in hand join; `None` where every
    /// sequence is in hand from its beginning.
    pub cache: Option<&'a mut Cache>,
}

/// Keys and values of one sequence in one block, `[capacity, kv_heads·head_dim]` each: a row per position.
#[derive(Debug)]
pub struct Cache {
    keys: Tensor,
    values: Tensor,
}

impl Block {
    /// An empty cache for sequences of up to `capacity` tokens.
    pub fn cache(&self, rec: &mut Recorder, capacity: usize) -> Result<Cache> {
        let shape = [capacity, self.heads.kv_heads * self.heads.head_dim];
        Ok(Cache { keys: rec.empty(&shape)?, values: rec.empty(&shape)? })
    }

    /// The residual stream through the norm of the half of the block that `stage` is in, `[tokens, hidden]` like `hidden`: what the
    /// linears of a stage read that begins with a norm.
    pub fn normalise(&self, rec: &mut Recorder, stage: Stage, hidden: &Tensor) -> Result<Tensor> {
        let norm = match stage {
            Stage::Attention | Stage::Output => &self.attention_norm,
            Stage::GateUp | Stage::Down => &self.mlp_norm,
        };
        rms_norm(rec, hidden, norm, self.epsilon)
    }

    /// What down reads, `[tokens, inner]`, from the residual stream. `weights`: of gate and up.
    pub fn down_input(&self, rec: &mut Recorder, weights: &[Tensor], hidden: &Tensor) -> Result<Tensor> {
        let input = self.normalise(rec, Stage::GateUp, hidden)?;
        let mut outputs = self.project(rec, weights, &input)?;
        self.add_biases(rec, Stage::GateUp, &mut outputs)?;
        silu_mul(rec, &outputs[0], &outputs[1])
    }

    /// X·Wᵀ for each linear of a stage, biases left out. `weights`: those of the stage, `[rows, columns]` each; `input`: X.
    pub fn project(&self, rec: &mut Recorder, weights: &[Tensor], input: &Tensor) -> Result<Vec<Tensor>> {
        weights.iter().map(|weight| matmul(rec, Orientation::Nt, input, weight)).collect()
    }

    fn add_biases(&self, rec: &mut Recorder, stage: Stage, outputs: &mut [Tensor]) -> Result<()> {
        let biases = outputs.iter_mut().zip(&self.biases[stage.linears()]);
        biases.filter_map(|(output, bias)| Some((output, bias.as_ref()?))).try_for_each(|(y, b)| add_bias(rec, y, b))
    }

    /// From the outputs of `project` to the input of the next stage, unless that begins with a norm.
    ///
    /// Stages that do not change the residual stream do not look at it. After [`Stage::Down`], `lane.hidden` is the block's output.
    pub fn fold(
        &self,
        rec: &mut Recorder,
        stage: Stage,
        mut outputs: Vec<Tensor>,
        context: &mut Context<'_>,
        lane: &mut Lane,
    ) -> Result<()> {
        self.add_biases(rec, stage, &mut outputs)?;
        match (stage, outputs.as_mut_slice()) {
            (Stage::Attention, [q, k, v]) => {
                self.rotate(rec, q, 0, context)?;
                self.rotate(rec, k, 1, context)?;
                let (k, v) = match &mut context.cache {
                    None => (&*k, &*v),
                    Some(cache) => {
                        rec.write_rows(k, &mut cache.keys, context.positions.first)?;
                        rec.write_rows(v, &mut cache.values, context.positions.first)?;
                        (&cache.keys, &cache.values)
                    }
                };
                lane.input = attention(rec, q, k, v, self.heads, context.positions)?;
            }
            (Stage::GateUp, [gate, up]) => lane.input = silu_mul(rec, gate, up)?,
            (Stage::Output | Stage::Down, [output]) => add_assign(rec, &mut lane.hidden, output)?,
            (stage, outputs) => unreachable!("{} outputs for {stage:?}", outputs.len()),
        }
        Ok(())
    }

    /// The whole block with one set of weights.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        weights: &[Tensor],
        context: &mut Context<'_>,
        hidden: Tensor,
    ) -> Result<Tensor> {
        let mut lane = Lane { input: rec.empty(&[0])?, hidden };
        for stage in Stage::ALL {
            if stage.begins_with_norm() {
                lane.input = self.normalise(rec, stage, &lane.hidden)?;
            }
            let outputs = self.project(rec, &weights[stage.linears()], &lane.input)?;
            self.fold(rec, stage, outputs, context, &mut lane)?;
        }
        Ok(lane.hidden)
    }

    /// Normalises (Qwen3) and rotates queries (`which` 0) or keys (1) in place.
    fn rotate(&self, rec: &mut Recorder, x: &mut Tensor, which: usize, context: &Context<'_>) -> Result<()> {
        let head_dim = self.heads.head_dim;
        if let Some(norms) = &self.head_norms {
            let shape = x.shape().to_vec();
            let per_head = std::mem::replace(x, rec.empty(&[0])?)
                .reshape(&[shape.iter().product::<usize>() / head_dim, head_dim])?;
            *x = rms_norm(rec, &per_head, &norms[which], self.epsilon)?.reshape(&shape)?;
        }
        rope(rec, x, context.rope_table, head_dim, context.positions)
    }
}

/// The most columns that any activation of the model has: what decides how many tokens fit an array.
pub fn widest_activation(config: &ModelConfig) -> usize {
    config.hidden_size.max(config.intermediate_size).max(config.num_attention_heads * config.head_dim)
}
