//! The record of a run: what was planned, what became of every layer and block, and where the time went.
//!
//! The pipeline fills it, `report` shows it, and front ends write it as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::device::{Place, Precision};
use crate::quant::solve::{AppliedAlpha, RoundedLayer};
use crate::quant::{Alpha, QuantizeOptions};

/// What a run spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading weights and putting them on the device.
    Load,
    /// H and D.
    Statistics,
    /// Cholesky, correction, α.
    Correction,
    /// Grids and codes.
    Rounding,
    /// Both streams through the block, and the errors measured on the way.
    Forward,
    /// Handing quantized layers to the output.
    Write,
}

impl Phase {
    /// A word for progress lines.
    pub fn label(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Statistics => "statistics",
            Self::Correction => "correct",
            Self::Rounding => "round",
            Self::Forward => "forward",
            Self::Write => "write",
        }
    }
}

/// The memory of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sequences that are processed together.
    pub sequences_per_chunk: usize,
    /// Where the hidden states of all chunks are.
    pub streams: Place,
    /// Whether what down reads is computed again from the residual stream each time, not kept.
    #[serde(default)]
    pub recompute: bool,
    /// Bytes on the device at the peak, about; on the CPU of the whole program.
    pub device_bytes: u64,
    /// Of these, what arrays that are not in use may keep for the next of their size; on a GPU they give way.
    pub spare_bytes: u64,
    /// Bytes of hidden states in host memory.
    pub host_bytes: u64,
    /// Bytes of hidden states in a file.
    pub file_bytes: u64,
}

/// What a run did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this crate.
    pub aquatint: String,
    /// The device's name.
    pub device: String,
    /// Which kernels its large products used.
    #[serde(default)]
    pub precision: Precision,
    /// What was asked for.
    pub options: QuantizeOptions,
    /// Inputs per grid that were used, `null` for per channel.
    pub group_size: Option<usize>,
    /// Calibration tokens, held-out ones included.
    pub tokens: usize,
    /// Tokens held out: the last windows.
    pub held_out_tokens: usize,
    /// Per layer, in execution order.
    pub layers: Vec<LayerReport>,
    /// Per block, in order.
    pub blocks: Vec<BlockReport>,
    /// Seconds per phase.
    pub seconds: BTreeMap<Phase, f64>,
    /// Seconds in all.
    pub total_seconds: f64,
    /// What was to be held where; `null` in records of earlier versions.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// Bytes of arrays that a GPU held at most since it was opened; `null` on the CPU.
    #[serde(default)]
    pub peak_device_bytes: Option<u64>,
}

/// What became of one linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Module path.
    pub name: String,
    /// α that was asked for.
    pub alpha_requested: Alpha,
    /// α* before shrinkage, where it was determined.
    pub alpha_optimal: Option<f64>,
    /// α that the stored layer was made with.
    pub alpha: f64,
    /// Whether the guard kept the uncorrected layer because the corrected one was worse on held-out tokens.
    pub guarded: bool,
    /// ρ_q.
    pub correction_damping: f64,
    /// ρ_r, greater than asked for where the factorisation failed; `null` but for GPTQ.
    pub rounding_damping: Option<f64>,
    /// r of AWQ's scales (mean|x̂|)^r; `null` for other methods, and where the input can take no scales.
    pub awq_ratio: Option<f64>,
    /// ‖WX − QX̂‖²/‖WX‖² on the tokens that the correction was fitted on.
    pub error_fitted: f64,
    /// The same on held-out tokens, `null` where there are none.
    pub error_held_out: Option<f64>,
    /// The same had the layer been rounded without correction, by the difference before any descent; `null` where none was tried.
    pub error_held_out_uncorrected: Option<f64>,
}

impl LayerReport {
    /// The record of `layer`, whose errors are not measured yet. `correction_damping`: ρ_q.
    pub(crate) fn new(layer: &RoundedLayer, correction_damping: f64) -> Self {
        let AppliedAlpha { requested, optimal, applied, guarded, .. } = layer.alpha;
        Self {
            name: layer.stored.name().to_string(),
            alpha_requested: requested,
            alpha_optimal: optimal,
            alpha: applied,
            guarded,
            correction_damping,
            rounding_damping: layer.rounding_damping,
            awq_ratio: layer.input_scales.as_ref().and_then(|scales| scales.ratio),
            error_fitted: 0.0,
            error_held_out: None,
            error_held_out_uncorrected: None,
        }
    }
}

/// The state of the streams after a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// Block, from 0.
    pub block: usize,
    /// ‖S − Ŝ‖²_F/‖S‖²_F over all calibration tokens.
    pub delta: f64,
    /// Its square root.
    pub error: f64,
}

impl Report {
    /// ‖S − Ŝ‖/‖S‖ after the last block.
    pub fn last_error(&self) -> f64 {
        self.blocks.last().map_or(0.0, |block| block.error)
    }

    /// Names of the layers whose correction the guard refused.
    pub fn guarded(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().filter(|layer| layer.guarded).map(|layer| layer.name.as_str())
    }
}
