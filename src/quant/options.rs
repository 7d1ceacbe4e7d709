//! What a run is asked to do. A run is a value: the same options, model and device give the same bytes.

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Format, GptqSettings, LayerPlan};
use crate::error::{Setting, phrase};
use crate::family::ModelConfig;
use crate::ops::grid::{ScaleType, Search, Symmetry};
use crate::quant::rotation;
use crate::{Error, Result, Sampling};

/// The base quantizer that the corrected weight is handed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// Column by column, later columns taking up the error of earlier ones (arXiv 2210.17323).
    Gptq,
    /// RTN after scaling inputs by how much they carry, with ranges shrunk to what serves the output (arXiv 2306.00978).
    Awq,
    /// GPTQ's loop on one grid per layer, after a rotation of inputs and outputs, which is undone (arXiv 2307.13304).
    Quip,
}

/// The random orthogonal transform of QuIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationKind {
    /// The Kronecker product of two random orthogonal matrices; any width.
    #[default]
    Kronecker,
    /// A Hadamard matrix with random signs, where the width has one.
    Hadamard,
}

/// In which order GPTQ visits the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationOrder {
    /// As stored; a group's grid follows from the weights as updated when its first column is reached.
    Natural,
    /// By falling diag H; group grids from W*, in the stored order, so that the checkpoint needs no permutation.
    Descending,
}

/// Inputs per grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
                let widths: Vec<usize> = config.linears().iter().map(|linear| linear.columns).collect();
                [128, 64, 32].into_iter().find(|size| widths.iter().all(|width| width % size == 0))
            }
        }
    }
}

/// Propagation strength α of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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

/// As the command line takes it.
impl std::fmt::Display for Alpha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Fixed(alpha) => write!(f, "{alpha}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// Which layer gets which α.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlphaPolicy {
    /// Where no pattern matches.
    pub default: Alpha,
    /// Regular expressions on the module path; the last that matches wins.
    #[serde(with = "patterns")]
    pub overrides: Vec<(regex::Regex, Alpha)>,
    /// κ, by which an automatic α* is shrunk: it ignores that W* is rounded and that later layers react.
    pub shrinkage: f64,
}

/// Values by regular expression, the expressions as their text.
mod patterns {
    use regex::Regex;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(rules: &[(Regex, T)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(rules.iter().map(|(pattern, value)| (pattern.as_str(), value)))
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Regex, T)>, D::Error> {
        let rules = Vec::<(String, T)>::deserialize(deserializer)?;
        let compiled = |(pattern, value): (String, T)| Ok((Regex::new(&pattern).map_err(D::Error::custom)?, value));
        rules.into_iter().map(compiled).collect()
    }
}

/// Regular expressions as their text.
mod expressions {
    use regex::Regex;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(expressions: &[Regex], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(expressions.iter().map(Regex::as_str))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Regex>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| Regex::new(text).map_err(D::Error::custom)).collect()
    }
}

impl AlphaPolicy {
    /// α of the layer of that module path.
    pub fn of(&self, module: &str) -> Alpha {
        let matching = self.overrides.iter().rev().find(|(pattern, _)| pattern.is_match(module));
        matching.map_or(self.default, |(_, alpha)| *alpha)
    }
}

/// Everything that decides the result, beside the model, the text and the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuantizeOptions {
    /// The base quantizer.
    pub method: Method,
    /// Bits per weight: 2, 3, 4 or 8.
    pub bits: u32,
    /// Bits of some layers: regular expressions on the module path; the last that matches wins.
    #[serde(default, with = "patterns")]
    pub bits_for: Vec<(regex::Regex, u32)>,
    /// Layers that keep their weights: regular expressions on the module path.
    #[serde(default, with = "expressions")]
    pub skip: Vec<regex::Regex>,
    /// Whether the output matrix is quantized, too. A tied one becomes a matrix of its own.
    #[serde(default)]
    pub lm_head: bool,
    /// Inputs per grid.
    pub group_size: GroupSize,
    /// Whether zero points are fixed at 2^(bits−1).
    pub symmetry: Symmetry,
    /// How grids are chosen. With AWQ, MSE stands for its own search, by the error at the output.
    pub grid: Search,
    /// To which type scales are rounded before codes are chosen.
    pub scale_type: ScaleType,
    /// QuIP's transform.
    #[serde(default)]
    pub rotation: RotationKind,
    /// In which order GPTQ visits columns.
    pub activation_order: ActivationOrder,
    /// Passes of coordinate descent over codes and scales after GPTQ; other methods make none.
    #[serde(default)]
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
    pub sampling: Sampling,
    /// Seed of the draw.
    pub seed: u64,
    /// Quantize the first blocks only, this many; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
}

impl Default for QuantizeOptions {
    /// 4 bits, GPTQ with static groups in activation order, grids weighted by pivots, four passes of descent, automatic α.
    fn default() -> Self {
        Self {
            method: Method::Gptq,
            bits: 4,
            bits_for: Vec::new(),
            skip: Vec::new(),
            lm_head: false,
            group_size: GroupSize::Auto,
            symmetry: default_symmetry(4),
            grid: Search::Weighted,
            scale_type: ScaleType::F16,
            rotation: RotationKind::Kronecker,
            activation_order: ActivationOrder::Descending,
            descent_passes: 4,
            alpha: AlphaPolicy { default: Alpha::Auto, overrides: Vec::new(), shrinkage: 0.6 },
            correction_damping: 0.01,
            rounding_damping: 0.01,
            samples: 128,
            seq_len: 2048,
            sampling: Sampling::Random,
            seed: 0,
            blocks: None,
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
        let require = |holds: bool, setting: Setting, found: String, expected: &str, remedy: &str| {
            if holds { Ok(()) } else { Err(Error::input(setting, found, expected, remedy)) }
        };
        let damping = |setting: Setting, value: f64| {
            let holds = value.is_finite() && value > 0.0;
            require(holds, setting, value.to_string(), "a finite number above 0", "use 0.01 unless you know better")
        };
        let bits = |setting: Setting, bits: u32| {
            let remedy = "choose one of these, clients load no other";
            require(matches!(bits, 2 | 3 | 4 | 8), setting, bits.to_string(), "2, 3, 4 or 8", remedy)
        };
        bits(Setting::Bits, self.bits)?;
        self.bits_for.iter().try_for_each(|(_, own)| bits(Setting::BitsFor, *own))?;
        damping(Setting::CorrectionDamping, self.correction_damping)?;
        damping(Setting::RoundingDamping, self.rounding_damping)?;
        let shrinkage = self.alpha.shrinkage;
        let holds = (0.0..=1.0).contains(&shrinkage);
        let remedy = "use 0.6 or leave it out";
        require(holds, Setting::AlphaShrinkage, shrinkage.to_string(), "a number from 0 to 1", remedy)?;
        require(self.samples > 0, Setting::Samples, "0".to_string(), "at least 1", "use 128 or leave it out")?;
        let remedy = "use 2048 or leave it out";
        require(self.seq_len > 1, Setting::SeqLen, self.seq_len.to_string(), "at least 2", remedy)?;
        if self.samples < 2 && self.uses_auto_alpha() {
            let expected = "at least 2 with an automatic α, which is chosen on held-out windows";
            let remedy = phrase!["use more samples, or ", Setting::Alpha.set_to(0.5)];
            return Err(Error::input(Setting::Samples, "1", expected, remedy));
        }
        require(
            self.group_size != GroupSize::Columns(0),
            Setting::GroupSize,
            "0".to_string(),
            "auto, a positive number or -1",
            "use auto",
        )
    }

    /// As [`QuantizeOptions::validate`], and whether the windows and blocks fit the model.
    pub fn validate_for(&self, config: &ModelConfig) -> Result<()> {
        self.validate()?;
        let all = config.blocks.len();
        if let Some(blocks) = self.blocks.filter(|blocks| !(1..=all).contains(blocks)) {
            let expected = format!("1 to {all}, the blocks of the model");
            return Err(Error::input(
                Setting::Blocks,
                blocks.to_string(),
                expected,
                "quantize fewer blocks, or at least one",
            ));
        }
        self.validate_layers(config)?;
        if self.seq_len <= config.max_position_embeddings {
            return Ok(());
        }
        let expected = format!("at most {}, the positions of the model", config.max_position_embeddings);
        Err(Error::input(Setting::SeqLen, self.seq_len.to_string(), expected, "use shorter windows"))
    }

    /// What a GPTQ checkpoint of `config` made with these options says about itself.
    pub fn gptq_settings(&self, config: &ModelConfig) -> GptqSettings {
        GptqSettings {
            bits: self.bits,
            group_size: self.grid_columns(config),
            symmetric: self.symmetry == Symmetry::Symmetric,
            damping: self.rounding_damping,
        }
    }

    /// Whether the patterns name layers of the model, and the transform exists for their widths.
    fn validate_layers(&self, config: &ModelConfig) -> Result<()> {
        let names: Vec<String> = config.linear_names().into_iter().chain(["lm_head".to_string()]).collect();
        let alphas = self.alpha.overrides.iter().map(|(pattern, _)| (Setting::AlphaOverrides, pattern));
        let bits = self.bits_for.iter().map(|(pattern, _)| (Setting::BitsFor, pattern));
        let skipped = self.skip.iter().map(|pattern| (Setting::Skip, pattern));
        for (setting, pattern) in alphas.chain(bits).chain(skipped) {
            if !names.iter().any(|name| pattern.is_match(name)) {
                let found = format!("'{pattern}', which matches no layer");
                let expected = format!("a regular expression that matches module paths such as {}", names[0]);
                return Err(Error::input(setting, found, expected, "correct the pattern"));
            }
        }
        let layers = self.layers(config);
        if layers.is_empty() {
            let expected = "a pattern that leaves some layers to quantize";
            let found = "patterns that match every layer";
            return Err(Error::input(Setting::Skip, found, expected, "use a narrower pattern"));
        }
        if self.method == Method::Quip && self.rotation == RotationKind::Hadamard {
            for linear in config.linears() {
                for width in [linear.rows, linear.columns] {
                    rotation::require_hadamard(width)?;
                }
            }
        }
        Ok(())
    }

    /// Bits of the layer of that module path, `None` if it keeps its weight.
    pub fn bits_of(&self, module: &str) -> Option<u32> {
        if self.skip.iter().any(|pattern| pattern.is_match(module)) {
            return None;
        }
        let own = self.bits_for.iter().rev().find(|(pattern, _)| pattern.is_match(module));
        Some(own.map_or(self.bits, |(_, bits)| *bits))
    }

    /// The layers that are quantized, in model order.
    pub fn layers(&self, config: &ModelConfig) -> Vec<LayerPlan> {
        let head = self.lm_head.then(|| config.head_linear().name);
        let names = config.linear_names().into_iter().chain(head);
        names.filter_map(|name| self.bits_of(&name).map(|bits| LayerPlan { name, bits })).collect()
    }

    /// Inputs per grid in `config`, `None` for per channel, which QuIP always is.
    pub fn grid_columns(&self, config: &ModelConfig) -> Option<usize> {
        if self.method == Method::Quip { None } else { self.group_size.resolve(config) }
    }

    /// The form in which the result is stored unless another is asked for: GPTQ's, but of QuIP the dequantized weights, as
    /// they lie on no grid.
    pub fn format(&self, config: &ModelConfig) -> Format {
        if self.method == Method::Quip { Format::Float } else { Format::Gptq(self.gptq_settings(config)) }
    }

    fn uses_auto_alpha(&self) -> bool {
        self.alpha.default == Alpha::Auto || self.alpha.overrides.iter().any(|(_, alpha)| *alpha == Alpha::Auto)
    }

    /// How many of the calibration windows, the last ones, are held out: a quarter, at least one of two or more.
    pub fn held_out(&self) -> usize {
        if self.samples < 2 { 0 } else { (self.samples / 4).max(1) }
    }
}
