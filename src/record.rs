//! The report of a run: its plan, the results for every layer and block, and the time per phase.
//!
//! The pipeline fills it in, `report` shows it, and front ends write it as JSON.

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
    /// Accumulating the hessian H and the error correlation D.
    Statistics,
    /// Cholesky factorisation, correction and propagation strength α.
    Correction,
    /// Choosing grids and codes.
    Rounding,
    /// Taking the streams through a group of linear layers, and measuring the errors of its outputs.
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
    /// Sequences that are processed together, as one chunk.
    pub sequences_per_chunk: usize,
    /// Where the hidden states of all chunks are kept.
    pub streams: Place,
    /// Whether a stream drops values that it can compute again token by token, such as the input of the down
    /// projection. This saves memory and costs time.
    #[serde(default)]
    pub recompute: bool,
    /// Bytes on the device at the peak, estimated. On the CPU this is the memory of the whole program.
    pub device_bytes: u64,
    /// The part of `device_bytes` that arrays which are not in use may occupy until an array of the same size is
    /// needed. It is 0 on a GPU, which frees such arrays when it needs the memory.
    pub spare_bytes: u64,
    /// Bytes of hidden states in host memory.
    pub host_bytes: u64,
    /// Bytes of hidden states in a file.
    pub file_bytes: u64,
}

/// The report of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this crate.
    pub aquatint: String,
    /// Name of the device.
    pub device: String,
    /// Which kernels computed large products.
    #[serde(default)]
    pub precision: Precision,
    /// The options of the run.
    pub options: QuantizeOptions,
    /// Inputs per grid, as used. `null` if there is one grid per row.
    pub group_size: Option<usize>,
    /// Calibration tokens, including the held-out tokens.
    pub tokens: usize,
    /// Held-out tokens. They are the last windows of the calibration text.
    pub held_out_tokens: usize,
    /// The layers, in execution order.
    pub layers: Vec<LayerReport>,
    /// The blocks, in order.
    pub blocks: Vec<BlockReport>,
    /// Seconds per phase.
    pub seconds: BTreeMap<Phase, f64>,
    /// Seconds in total.
    pub total_seconds: f64,
    /// The planned memory. `null` in reports of earlier versions.
    #[serde(default)]
    pub plan: Option<Plan>,
    /// The peak size of all arrays on a GPU since it was opened, in bytes. `null` on the CPU.
    #[serde(default)]
    pub peak_device_bytes: Option<u64>,
}

/// The report of one linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Module path.
    pub name: String,
    /// The propagation strength α that was asked for.
    pub alpha_requested: Alpha,
    /// α* before shrinkage. `null` where it was not determined.
    pub alpha_optimal: Option<f64>,
    /// The α with which the stored layer was made.
    pub alpha: f64,
    /// Whether the guard kept the uncorrected layer because the corrected one was worse on held-out tokens.
    pub guarded: bool,
    /// ρ_q, the damping of the correction, as a share of mean(diag H).
    pub correction_damping: f64,
    /// ρ_r, the damping of the rounding, as a share of mean(diag H). It is greater than asked for if GPTQ's
    /// factorisation failed. `null` for methods that damp nothing.
    pub rounding_damping: Option<f64>,
    /// The exponent r of AWQ's scales (mean|x̂|)^r. `null` for other methods, and where the input can take no scales.
    pub awq_ratio: Option<f64>,
    /// The relative error of the output, ‖WX − QX̂‖²/‖WX‖², on the tokens that the correction was fitted on.
    pub error_fitted: f64,
    /// The same error on held-out tokens. `null` if no tokens are held out.
    pub error_held_out: Option<f64>,
    /// The held-out error that the layer would have without correction. It is estimated as `error_held_out` plus the
    /// difference between the scores of the two roundings, which the guard takes before any refinement. `null` if the
    /// guard compared nothing, or if the number is not finite.
    pub error_held_out_uncorrected: Option<f64>,
}

impl LayerReport {
    /// The report of `layer` before its errors are measured. `correction_damping`: ρ_q.
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

/// The error of the quantized stream after a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// Number of the block, from 0.
    pub block: usize,
    /// Δ_m = ‖S − Ŝ‖²_F/‖S‖²_F over all calibration tokens.
    pub delta: f64,
    /// The square root of `delta`.
    pub error: f64,
}

impl Report {
    /// The relative error of the quantized stream after the last block, ‖S − Ŝ‖/‖S‖. It is 0 if there are no blocks.
    pub fn last_error(&self) -> f64 {
        self.blocks.last().map_or(0.0, |block| block.error)
    }

    /// Names of the layers whose correction the guard rejected.
    pub fn guarded(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().filter(|layer| layer.guarded).map(|layer| layer.name.as_str())
    }
}
