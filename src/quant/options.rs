//! The options of a run. With the same options, text, model and device a run writes the same bytes.
//!
//! Nothing here knows a model. `pipeline::Treatment` says what the options mean for one.

use serde::{Deserialize, Serialize};

use crate::error::{Setting, phrase};
use crate::ops::grid::{Search, Symmetry};
use crate::{Error, Result, Sampling};

/// The base quantizer, which rounds the corrected weights. [`methods`](super::methods) has the implementations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// Column by column; later columns make up for the rounding of earlier ones (arXiv 2210.17323).
    Gptq,
    /// RTN with the inputs that carry most scaled up, and with ranges shrunk to lower the output error (arXiv 2306.00978).
    Awq,
    /// GPTQ's loop on one grid per layer, after a rotation of inputs and outputs that is undone (arXiv 2307.13304).
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

/// The order in which GPTQ visits the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationOrder {
    /// As stored. A group's grid is chosen from the weights as updated when its first column is reached.
    Natural,
    /// By falling diag H. Grids are chosen from W* for groups in stored order, so that the checkpoint needs no permutation.
    Descending,
}

/// Group size: inputs per grid.
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

/// Propagation strength α of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alpha {
    /// No correction.
    Off,
    /// This α in [0, 1].
    Fixed(f64),
    /// κ·α* with α* from held-out tokens, and with the guard.
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

/// The same text that [`Alpha::from_str`](std::str::FromStr::from_str) reads.
impl std::fmt::Display for Alpha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Fixed(alpha) => write!(f, "{alpha}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// α of each layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlphaPolicy {
    /// α of a layer that no pattern matches.
    pub default: Alpha,
    /// α by regular expression on the module path; the last match wins.
    #[serde(with = "patterns")]
    pub overrides: Vec<(regex::Regex, Alpha)>,
    /// κ, the factor on an automatic α*, which ignores that W* is rounded and that later layers react.
    pub shrinkage: f64,
}

/// Serializes values by regular expression, with the expressions as text.
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

/// Serializes regular expressions as text.
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
    /// Whether some layer may be corrected.
    pub fn corrects(&self) -> bool {
        self.default != Alpha::Off || !self.overrides.is_empty()
    }

    /// α of the layer with the path `module`.
    pub fn of(&self, module: &str) -> Alpha {
        let matching = self.overrides.iter().rev().find(|(pattern, _)| pattern.is_match(module));
        matching.map_or(self.default, |(_, alpha)| *alpha)
    }
}

/// Everything that decides the result beside the model, the text and the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuantizeOptions {
    /// Name of the checkpoint format, which decides the grids; `None` for the one that suits the method.
    #[serde(default)]
    pub format: Option<String>,
    /// Name of the mixture of types, for a format that has any; `None` for the one that suits the bits.
    #[serde(default)]
    pub mixture: Option<String>,
    /// The base quantizer.
    pub method: Method,
    /// Bits per weight: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Bits of some layers, by regular expression on the module path; the last match wins.
    #[serde(default, with = "patterns")]
    pub bits_for: Vec<(regex::Regex, u32)>,
    /// The layers that keep their weights, by regular expression on the module path.
    #[serde(default, with = "expressions")]
    pub skip: Vec<regex::Regex>,
    /// Whether the output matrix is quantized, too. A matrix that is tied to the embedding is then stored separately.
    #[serde(default)]
    pub lm_head: bool,
    /// Group size.
    pub group_size: GroupSize,
    /// Whether zero points are fixed at 2^(bits−1).
    pub symmetry: Symmetry,
    /// How grids are chosen. AWQ has its own search, by the output error; it runs unless this is min–max.
    pub grid: Search,
    /// The transform of QuIP.
    #[serde(default)]
    pub rotation: RotationKind,
    /// The order in which GPTQ visits the columns.
    pub activation_order: ActivationOrder,
    /// Passes of coordinate descent over codes and scales after GPTQ. Other methods make none.
    #[serde(default)]
    pub descent_passes: usize,
    /// Propagation strength α of each layer.
    pub alpha: AlphaPolicy,
    /// ρ_q, the damping of the correction: λ as a share of mean(diag H).
    pub correction_damping: f64,
    /// ρ_r, the damping of the rounding: λ as a share of mean(diag H).
    pub rounding_damping: f64,
    /// Calibration windows.
    pub samples: usize,
    /// Tokens per window.
    pub seq_len: usize,
    /// How windows are drawn.
    pub sampling: Sampling,
    /// Seed of the draw.
    pub seed: u64,
    /// How many blocks are quantized, the first ones; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
}

impl Default for QuantizeOptions {
    /// 4 bits, GPTQ with static groups in activation order, grids weighted by pivots, four passes of descent, automatic α.
    fn default() -> Self {
        Self {
            format: None,
            mixture: None,
            method: Method::Gptq,
            bits: 4,
            bits_for: Vec::new(),
            skip: Vec::new(),
            lm_head: false,
            group_size: GroupSize::Auto,
            symmetry: default_symmetry(4),
            grid: Search::Weighted,
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

/// Symmetric at 4 and 8 bits, which is all that vLLM loads; asymmetric at 2 and 3, where a zero point gains most.
pub fn default_symmetry(bits: u32) -> Symmetry {
    if matches!(bits, 4 | 8) { Symmetry::Symmetric } else { Symmetry::Asymmetric }
}

impl QuantizeOptions {
    /// Checks the values by themselves. Errors: `Error::Input` naming the first option whose value cannot be used.
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
            require(matches!(bits, 2..=6 | 8), setting, bits.to_string(), "2, 3, 4, 5, 6 or 8", remedy)
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

    /// Bits of the layer with the path `module`; `None` if it keeps its weight.
    pub fn bits_of(&self, module: &str) -> Option<u32> {
        if self.skip.iter().any(|pattern| pattern.is_match(module)) {
            return None;
        }
        let own = self.bits_for.iter().rev().find(|(pattern, _)| pattern.is_match(module));
        Some(own.map_or(self.bits, |(_, bits)| *bits))
    }

    fn uses_auto_alpha(&self) -> bool {
        self.alpha.default == Alpha::Auto || self.alpha.overrides.iter().any(|(_, alpha)| *alpha == Alpha::Auto)
    }

    /// How many of the calibration windows are held out, the last ones: a quarter, and at least one of two or more.
    pub fn held_out(&self) -> usize {
        if self.samples < 2 { 0 } else { (self.samples / 4).max(1) }
    }
}
