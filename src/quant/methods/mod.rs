//! The base quantizers: one file each, one trait, one table.
//!
//! The table is the only place that matches on a [`Method`]. Everything else asks the [`BaseQuantizer`] that the table names. So a
//! new method is one file in this folder, one value of [`Method`] and one row of the table.

pub mod awq;
mod gptq;
mod quip;
mod rtn;

use std::fmt;
use std::str::FromStr;

use futures::future::LocalBoxFuture;

use super::{Curvature, Method, QuantizeOptions, RoundedWeight};
use crate::Result;
use crate::device::Recorder;
use crate::ops::grid::GridSpec;
use crate::quant::statistics::Magnitudes;
use crate::tensor::Tensor;
pub use awq::{Feasible, InputScales};

/// A row of the table of methods.
struct Row {
    /// The name on the command line, on the page and in records.
    name: &'static str,
    /// A phrase that says what it does.
    description: &'static str,
    quantizer: &'static dyn BaseQuantizer,
}

impl Method {
    /// All methods, in the order in which a front end lists them.
    pub const ALL: [Self; 4] = [Self::Rtn, Self::Gptq, Self::Awq, Self::Quip];

    /// The table.
    fn row(self) -> Row {
        match self {
            Self::Rtn => Row { name: "rtn", description: "round to nearest", quantizer: &rtn::Rtn },
            Self::Gptq => Row {
                name: "gptq",
                description: "column by column, later columns making up for the rounding of earlier ones",
                quantizer: &gptq::Gptq,
            },
            Self::Awq => Row {
                name: "awq",
                description: "round to nearest with the inputs that carry most scaled up",
                quantizer: &awq::Awq,
            },
            Self::Quip => Row {
                name: "quip",
                description: "GPTQ's loop on one grid per layer, after a random rotation",
                quantizer: &quip::Quip,
            },
        }
    }

    /// The implementation.
    pub fn quantizer(self) -> &'static dyn BaseQuantizer {
        self.row().quantizer
    }

    /// The name on the command line, on the page and in records.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// A phrase that says what it does.
    pub fn description(self) -> &'static str {
        self.row().description
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|method| method.name() == text).ok_or_else(|| {
            let [others @ .., last] = Self::ALL.map(Self::name);
            format!("found '{text}', expected {} or {last}", others.join(", "))
        })
    }
}

/// What a base quantizer does, before any group is in hand.
pub trait BaseQuantizer: Sync {
    /// What it needs of the input of a group, beside what the correction needs.
    fn needs(&self) -> InputNeeds;

    /// Whether it scales the input of a group. Something before the group must then take the inverse scales.
    fn scales_input(&self) -> bool {
        false
    }

    /// Why its weights lie on no grid, so that groups do not apply and no format of codes can store them: a clause with the weights
    /// as its subject. `None` where they lie on one.
    fn off_grid(&self) -> Option<&'static str> {
        None
    }

    /// Errors: `Error::Input` naming the option that does not go with a linear of `shape`, `[outputs, inputs]`.
    fn check_shape(&self, _options: &QuantizeOptions, _shape: [usize; 2]) -> Result<()> {
        Ok(())
    }

    /// Elements that it holds on the device while it rounds a group of `n` inputs, beside weights, statistics and the factor of H.
    fn held_elements(&self, n: u64) -> u64;

    /// Operations to prepare for a group of `n` inputs.
    fn preparation_work(&self, _n: f64) -> f64 {
        0.0
    }

    /// Operations for one linear of a group.
    fn linear_work(&self, options: &QuantizeOptions, linear: LinearExtent) -> LinearWork;

    /// Prepares to round the linears of a group.
    ///
    /// Errors: `Error::Shape` if `input` lacks what [`BaseQuantizer::needs`] says, `Error::NotFinite` if numbers overflow.
    fn prepare<'r, 'a: 'r>(
        &self,
        rec: &'r mut Recorder,
        input: GroupInput<'a>,
        search: ScaleSearch<'r>,
    ) -> LocalBoxFuture<'r, Result<Box<dyn GroupRounder + 'a>>>;
}

/// A base quantizer that is ready to round the linears of one group.
pub trait GroupRounder {
    /// Rounds `weight` `[m, n]`, which is W or W* of `layer`.
    fn round<'r>(
        &'r self,
        rec: &'r mut Recorder,
        layer: Layer<'r>,
        weight: &'r Tensor,
    ) -> LocalBoxFuture<'r, Result<RoundedWeight>>;

    /// Lowers the loss of `rounded`, which [`GroupRounder::round`] made of `weight` `[m, n]`. Most methods return it as it is.
    fn refine(&self, _rec: &mut Recorder, _weight: &Tensor, rounded: RoundedWeight) -> Result<RoundedWeight> {
        Ok(rounded)
    }

    /// The scales that the group's input is to be multiplied by; `None` where the method scales no input.
    fn input_scales(&self) -> Option<&InputScales> {
        None
    }

    /// ρ_r that was used, which is greater than the option where the factorisation failed; `None` where the method damps nothing.
    fn damping(&self) -> Option<f64> {
        None
    }
}

/// What a base quantizer needs of the input of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputNeeds {
    /// H; `None` if the weights alone decide the result.
    pub hessian: Option<HessianForm>,
    /// Whether it needs mean|x̂|.
    pub magnitudes: bool,
}

/// How H is laid out where a method works with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HessianForm {
    /// As the tiles in which it is accumulated, about half of the square.
    Tiles,
    /// As a dense matrix, which the device must be able to bind.
    Dense,
}

/// What a base quantizer may know of a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupInput<'a> {
    /// The options of the run.
    pub options: &'a QuantizeOptions,
    /// H over all calibration tokens; `None` if no statistics were accumulated.
    pub curvature: Option<Curvature<'a>>,
    /// mean|x̂| over all calibration tokens, where the method asked for it.
    pub magnitudes: Option<&'a Magnitudes>,
}

/// What a method that scales the input of a group chooses the scales by. Other methods ignore it.
#[derive(Clone, Copy, Default)]
pub struct ScaleSearch<'r> {
    /// The weights that are to be rounded, `[m, n]` each, with their grids.
    pub weights: &'r [(&'r Tensor, GridSpec)],
    /// Which scales can be had; `None` where the input can take none.
    pub feasible: Option<Feasible<'r>>,
}

/// A layer that is to be rounded.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Module path.
    pub name: &'a str,
    /// Its grids.
    pub grid: GridSpec,
}

/// The extent of a linear, as counts of operations take it.
#[derive(Debug, Clone, Copy)]
pub struct LinearExtent {
    /// m, outputs.
    pub rows: f64,
    /// n, inputs.
    pub columns: f64,
    /// Inputs per grid.
    pub group_size: f64,
}

impl LinearExtent {
    /// Number of weights.
    fn weights(&self) -> f64 {
        self.rows * self.columns
    }

    /// Operations of a product with an n × n matrix.
    fn product(&self) -> f64 {
        2.0 * self.weights() * self.columns
    }
}

/// Operations of a base quantizer for one linear, a multiplication and an addition being two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearWork {
    /// For each rounding. The guard has a linear rounded twice.
    pub rounding: f64,
    /// Once: for a search before the rounding or a refinement after it.
    pub search: f64,
}

/// Shrink factors that a grid search tries, times operations for one weight each, about.
const GRID_SEARCH: f64 = 80.0 * 8.0;
