//! What a run is asked to do. A run is a value: the same options, model and device give the same bytes.

use serde::Serialize;

use crate::checkpoint::GptqSettings;
use crate::model::ModelConfig;
use crate::ops::grid::{ScaleType, Search, Symmetry};
use crate::{Error, Result, Sampling};

/// The base quantizer that the corrected weight is handed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// Column by column, later columns taking up the error of earlier ones (arXiv 2210.17323).
    Gptq,
}

/// In which order GPTQ visits the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationOrder {
    /// As stored; a group's grid follows from the weights as updated when its first column is reached.
    Natural,
    /// By falling diag H; group grids from W*, in the stored order, so that the checkpoint needs no permutation.
    Descending,
}

/// Inputs per grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupSize {
    /// The largest of 128, 64 and 32 that divides every input width, else one grid per row.
    Auto,
    /// One grid per row.
    PerChannel,
    /// One grid per row and this many consecutive inputs.
    Columns(usize),
}

impl GroupSize {
    /// Inputs per grid in `config`, `None` for per channel.
    pub fn resolve(self, config: &ModelConfig) -> Option<usize> {
        match self {
            Self::PerChannel => None,
            Self::Columns(size) => Some(size),
            Self::Auto => {
                let widths: Vec<usize> = config.block_linears(0).iter().map(|linear| linear.columns).collect();
                [128, 64, 32].into_iter().find(|size| widths.iter().all(|width| width % size == 0))
            }
        }
    }
}

/// Propagation strength α of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Alpha {
    /// No correction.
    Off,
    /// This α in [0, 1].
    Fixed(f64),
    /// κ·α*, α* from held-out tokens, with the guard.
    Auto,
}

impl std::str::FromStr for Alpha {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => match text.parse::<f64>() {
                Ok(0.0) => Ok(Self::Off),
                Ok(value) if (0.0..=1.0).contains(&value) => Ok(Self::Fixed(value)),
                _ => Err(format!("found '{text}', expected auto, off, or a number from 0 to 1")),
            },
        }
    }
}

/// Which layer gets which α.
#[derive(Debug, Clone, Serialize)]
pub struct AlphaPolicy {
    /// Where no pattern matches.
    pub default: Alpha,
    /// Regular expressions on the module path; the last that matches wins.
    #[serde(serialize_with = "patterns")]
    pub overrides: Vec<(regex::Regex, Alpha)>,
    /// κ, by which an automatic α* is shrunk: it ignores that W* is rounded and that later layers react.
    pub shrinkage: f64,
}

fn patterns<S: serde::Serializer>(
    overrides: &[(regex::Regex, Alpha)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(overrides.iter().map(|(pattern, alpha)| (pattern.as_str(), alpha)))
}

impl AlphaPolicy {
    /// α of the layer of that module path.
    pub fn of(&self, module: &str) -> Alpha {
        let matching = self.overrides.iter().rev().find(|(pattern, _)| pattern.is_match(module));
        matching.map_or(self.default, |(_, alpha)| *alpha)
    }
}

/// Everything that decides the result, beside the model, the text and the device.
#[derive(Debug, Clone, Serialize)]
pub struct QuantizeOptions {
    /// The base quantizer.
    pub method: Method,
    /// Bits per weight: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per grid.
    pub group_size: GroupSize,
    /// Whether zero points are fixed at 2^(bits−1).
    #[serde(serialize_with = "debug_lowercase")]
    pub symmetry: Symmetry,
    /// How grids are chosen.
    #[serde(serialize_with = "debug_lowercase")]
    pub grid: Search,
    /// To which type scales are rounded before codes are chosen.
    #[serde(serialize_with = "debug_lowercase")]
    pub scale_type: ScaleType,
    /// In which order GPTQ visits columns.
    pub activation_order: ActivationOrder,
    /// Passes of coordinate descent over codes and scales after GPTQ; RTN makes none.
    pub descent_passes: usize,
    /// Propagation strength per layer.
    pub alpha: AlphaPolicy,
    /// ρ_q: ridge of the correction as a share of mean(diag H).
    pub correction_damping: f64,
    /// ρ_r: ridge of the rounding as a share of mean(diag H).
    pub rounding_damping: f64,
    /// Calibration windows.
    pub samples: usize,
    /// Tokens per window.
    pub seq_len: usize,
    /// How windows are drawn.
    #[serde(serialize_with = "debug_lowercase")]
    pub sampling: Sampling,
    /// Seed of the draw.
    pub seed: u64,
}

fn debug_lowercase<T: std::fmt::Debug, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{value:?}").to_lowercase())
}

impl Default for QuantizeOptions {
    /// 4 bits, GPTQ with static groups in activation order, MSE grids, automatic α.
    fn default() -> Self {
        Self {
            method: Method::Gptq,
            bits: 4,
            group_size: GroupSize::Auto,
            symmetry: default_symmetry(4),
            grid: Search::Mse,
            scale_type: ScaleType::F16,
            activation_order: ActivationOrder::Descending,
            descent_passes: 4,
            alpha: AlphaPolicy { default: Alpha::Auto, overrides: Vec::new(), shrinkage: 0.6 },
            correction_damping: 0.01,
            rounding_damping: 0.01,
            samples: 128,
            seq_len: 2048,
            sampling: Sampling::Random,
            seed: 0,
        }
    }
}

/// Symmetric at 4 and 8 bits, which is all that vLLM loads; asymmetric at 2 and 3, where it buys the most.
pub fn default_symmetry(bits: u32) -> Symmetry {
    if matches!(bits, 4 | 8) { Symmetry::Symmetric } else { Symmetry::Asymmetric }
}

impl QuantizeOptions {
    /// Errors: `Error::Input` naming the first option whose value cannot be used.
    pub fn validate(&self) -> Result<()> {
        let require = |holds: bool, option: &str, found: String, expected: &str, remedy: &str| {
            if holds { Ok(()) } else { Err(Error::input(option, found, expected, remedy)) }
        };
        let damping = |option: &str, value: f64| {
            let holds = value.is_finite() && value > 0.0;
            require(holds, option, value.to_string(), "a finite number above 0", "use 0.01 unless you know better")
        };
        require(
            matches!(self.bits, 2 | 3 | 4 | 8),
            "--bits",
            self.bits.to_string(),
            "2, 3, 4 or 8",
            "choose one of these, clients load no other",
        )?;
        damping("--correction-damping", self.correction_damping)?;
        damping("--rounding-damping", self.rounding_damping)?;
        let shrinkage = self.alpha.shrinkage;
        let holds = (0.0..=1.0).contains(&shrinkage);
        require(holds, "--alpha-shrinkage", shrinkage.to_string(), "a number from 0 to 1", "use 0.6 or leave it out")?;
        require(self.samples > 0, "--samples", "0".to_string(), "at least 1", "use 128 or leave it out")?;
        require(self.seq_len > 1, "--seq-len", self.seq_len.to_string(), "at least 2", "use 2048 or leave it out")?;
        require(
            self.samples > 1 || !self.uses_auto_alpha(),
            "--samples",
            "1".to_string(),
            "at least 2 with an automatic α, which is chosen on held-out windows",
            "use more samples, or --alpha 0.5",
        )?;
        require(
            self.group_size != GroupSize::Columns(0),
            "--group-size",
            "0".to_string(),
            "auto, a positive number or -1",
            "use auto",
        )
    }

    /// As [`QuantizeOptions::validate`], and whether the windows fit the positions of the model.
    pub fn validate_for(&self, config: &ModelConfig) -> Result<()> {
        self.validate()?;
        if self.seq_len <= config.max_position_embeddings {
            return Ok(());
        }
        let expected = format!("at most {}, the positions of the model", config.max_position_embeddings);
        Err(Error::input("--seq-len", self.seq_len.to_string(), expected, "use shorter windows"))
    }

    /// What a GPTQ checkpoint of `config` made with these options says about itself.
    pub fn gptq_settings(&self, config: &ModelConfig) -> GptqSettings {
        GptqSettings {
            bits: self.bits,
            group_size: self.group_size.resolve(config),
            symmetric: self.symmetry == Symmetry::Symmetric,
            damping: self.rounding_damping,
        }
    }

    fn uses_auto_alpha(&self) -> bool {
        self.alpha.default == Alpha::Auto || self.alpha.overrides.iter().any(|(_, alpha)| *alpha == Alpha::Auto)
    }

    /// How many of the calibration windows, the last ones, are held out: a quarter, at least one of two or more.
    pub fn held_out(&self) -> usize {
        if self.samples < 2 { 0 } else { (self.samples / 4).max(1) }
    }
}
