//! What a run does to which layer of a model: the options, which know no model, applied to one.
//!
//! Front ends validate a treatment before any work, and the pipeline and the checkpoint writer ask it for layers, groups and format.

use crate::checkpoint::formats::default_for;
use crate::checkpoint::{Format, LayerPlan, QuantizationSettings};
use crate::error::Setting;
use crate::family::ModelConfig;
use crate::ops::grid::Symmetry;
use crate::quant::{GroupSize, QuantizeOptions};
use crate::stored::Form;
use crate::{Error, Result};

/// Group sizes that `auto` chooses from.
const AUTOMATIC_GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// The options of a run, for one model.
#[derive(Debug, Clone, Copy)]
pub struct Treatment<'a> {
    /// What is asked for.
    pub options: &'a QuantizeOptions,
    /// The model that is quantized.
    pub model: &'a ModelConfig,
}

impl<'a> Treatment<'a> {
    /// `options` for `model`, not validated.
    pub fn new(options: &'a QuantizeOptions, model: &'a ModelConfig) -> Self {
        Self { options, model }
    }

    /// Checks the options by themselves and against the model: blocks, patterns, shapes and the length of the windows.
    ///
    /// Errors: `Error::Input` naming the first option whose value cannot be used.
    pub fn validate(&self) -> Result<()> {
        self.options.validate()?;
        let all = self.model.blocks.len();
        if let Some(blocks) = self.options.blocks.filter(|blocks| !(1..=all).contains(blocks)) {
            let expected = format!("1 to {all}, the blocks of the model");
            return Err(Error::input(
                Setting::Blocks,
                blocks.to_string(),
                expected,
                "quantize fewer blocks, or at least one",
            ));
        }
        self.validate_layers()?;
        let (seq_len, positions) = (self.options.seq_len, self.model.max_position_embeddings);
        if seq_len <= positions {
            return Ok(());
        }
        let expected = format!("at most {positions}, the positions of the model");
        Err(Error::input(Setting::SeqLen, seq_len.to_string(), expected, "use shorter windows"))
    }

    /// Checks that every pattern matches a layer, that some layer is left to quantize, and that the method can round their shapes.
    fn validate_layers(&self) -> Result<()> {
        let QuantizeOptions { alpha, bits_for, skip, method, .. } = self.options;
        let names: Vec<String> = self.model.linear_names().into_iter().chain(["lm_head".to_string()]).collect();
        let alphas = alpha.overrides.iter().map(|(pattern, _)| (Setting::AlphaOverrides, pattern));
        let bits = bits_for.iter().map(|(pattern, _)| (Setting::BitsFor, pattern));
        let skipped = skip.iter().map(|pattern| (Setting::Skip, pattern));
        for (setting, pattern) in alphas.chain(bits).chain(skipped) {
            if !names.iter().any(|name| pattern.is_match(name)) {
                let found = format!("'{pattern}', which matches no layer");
                let expected = format!("a regular expression that matches module paths such as {}", names[0]);
                return Err(Error::input(setting, found, expected, "correct the pattern"));
            }
        }
        if self.layers().is_empty() {
            let expected = "a pattern that leaves some layers to quantize";
            let found = "patterns that match every layer";
            return Err(Error::input(Setting::Skip, found, expected, "use a narrower pattern"));
        }
        let linears = self.model.linears();
        let quantizer = method.quantizer();
        linears.iter().try_for_each(|linear| quantizer.check_shape(self.options, [linear.rows, linear.columns]))
    }

    /// The layers that are quantized, in model order.
    pub fn layers(&self) -> Vec<LayerPlan> {
        let head = self.options.lm_head.then(|| self.model.head_linear().name);
        let names = self.model.linear_names().into_iter().chain(head);
        names.filter_map(|name| self.options.bits_of(&name).map(|bits| LayerPlan { name, bits })).collect()
    }

    /// Group size; `None` for one grid per row, which is also what a method without a grid gets.
    pub fn group_size(&self) -> Option<usize> {
        if self.options.method.quantizer().off_grid().is_some() {
            return None;
        }
        match self.options.group_size {
            GroupSize::PerChannel => None,
            GroupSize::Columns(size) => Some(size),
            GroupSize::Auto => {
                let widths: Vec<usize> = self.model.linears().iter().map(|linear| linear.columns).collect();
                AUTOMATIC_GROUP_SIZES.into_iter().find(|size| widths.iter().all(|width| width % size == 0))
            }
        }
    }

    /// The form in which layers are left: codes on grids, or dequantized weights if they lie on none.
    pub fn form(&self) -> Form {
        if self.options.method.quantizer().off_grid().is_some() { Form::Dense } else { Form::Codes }
    }

    /// The format of the result unless another is asked for.
    pub fn format(&self) -> &'static dyn Format {
        default_for(self.form())
    }

    /// What a format must know of the run.
    pub fn settings(&self) -> QuantizationSettings {
        QuantizationSettings {
            bits: self.options.bits,
            group_size: self.group_size(),
            symmetric: self.options.symmetry == Symmetry::Symmetric,
            damping: self.options.rounding_damping,
        }
    }

    /// Whether the result depends on the calibration text: the method needs it, or some layer may be corrected.
    pub fn needs_calibration(&self) -> bool {
        let QuantizeOptions { alpha, method, .. } = self.options;
        method.quantizer().needs().hessian.is_some() || alpha.corrects()
    }
}
