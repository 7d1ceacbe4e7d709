//! The options as the page sends them, and their conversion to the library's options.

use aquatint::checkpoint::Checkpoint;
use aquatint::error::Setting;
use aquatint::ops::grid::{Search, Symmetry};
use aquatint::pipeline::Treatment;
use aquatint::quant::options::default_symmetry;
use aquatint::quant::{ActivationOrder, Alpha, AlphaPolicy, GroupSize, QuantizeOptions};
use aquatint::{Error, Result};
use serde::Deserialize;

/// An option that is either a value or a word.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Choice<T> {
    /// The value.
    Value(T),
    /// `auto` or `off`.
    Word(String),
}

/// The options of a run as the page sends them. `static/options.js` builds this object.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageOptions {
    method: String,
    bits: u32,
    group_size: Choice<i64>,
    symmetric: Choice<bool>,
    alpha: Choice<f64>,
    samples: usize,
    seq_len: usize,
    seed: u64,
    act_order: bool,
    grid: String,
    descent: usize,
    format: String,
}

impl PageOptions {
    /// Converts to the library's options. Errors: `Error::Input` for a value that cannot be used with `model`.
    pub fn resolve(&self, model: &Checkpoint) -> Result<QuantizeOptions> {
        let options = QuantizeOptions {
            format: Some(self.format.clone()),
            method: self.method.parse().map_err(|_| unknown(Setting::Method, &self.method))?,
            bits: self.bits,
            group_size: match &self.group_size {
                Choice::Value(-1) => GroupSize::PerChannel,
                Choice::Value(size) if *size > 0 => GroupSize::Columns(*size as usize),
                Choice::Value(size) => return Err(unknown(Setting::GroupSize, &size.to_string())),
                Choice::Word(_) => GroupSize::Auto,
            },
            symmetry: match self.symmetric {
                Choice::Value(true) => Symmetry::Symmetric,
                Choice::Value(false) => Symmetry::Asymmetric,
                Choice::Word(_) => default_symmetry(self.bits),
            },
            grid: match self.grid.as_str() {
                "hessian" => Search::Weighted,
                "mse" => Search::Mse,
                "minmax" => Search::MinMax,
                other => return Err(unknown(Setting::Grid, other)),
            },
            descent_passes: self.descent,
            activation_order: if self.act_order { ActivationOrder::Descending } else { ActivationOrder::Natural },
            alpha: AlphaPolicy { default: self.alpha()?, ..QuantizeOptions::default().alpha },
            samples: self.samples,
            seq_len: self.seq_len,
            seed: self.seed,
            ..QuantizeOptions::default()
        };
        Treatment::new(&options, model.config()).validate()?;
        Ok(options)
    }

    fn alpha(&self) -> Result<Alpha> {
        match &self.alpha {
            Choice::Value(0.0) => Ok(Alpha::Off),
            Choice::Value(value) if (0.0..=1.0).contains(value) => Ok(Alpha::Fixed(*value)),
            Choice::Value(value) => Err(unknown(Setting::Alpha, &value.to_string())),
            Choice::Word(word) => word.parse().map_err(|_| unknown(Setting::Alpha, word)),
        }
    }
}

fn unknown(setting: Setting, found: &str) -> Error {
    Error::input(setting, format!("'{found}'"), "one of the values that the page offers", "choose one of these")
}
