//! Applies the options of a run to one model: which layers are quantized, in which groups, and in which form and
//! format.
//!
//! The options themselves know no model. Front ends validate a [`Treatment`] before any work. The pipeline and the
//! checkpoint writer ask it for layers, group size and format.

use crate::checkpoint::formats::{default_for, named};
use crate::checkpoint::gguf::mixtures::Mixture;
use crate::checkpoint::{Format, LayerPlan, QuantizationSettings};
use crate::error::{Setting, phrase};
use crate::family::{Fold, Linear, LinearSpec, ModelConfig, Name};
use crate::ops::grid::Symmetry;
use crate::quant::{GroupSize, QuantizeOptions};
use crate::stored::Form;
use crate::{Error, Result};

/// The group sizes from which `auto` takes the first that divides every input width.
const AUTOMATIC_GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// The options of a run, applied to one model.
#[derive(Debug, Clone, Copy)]
pub struct Treatment<'a> {
    /// The options of the run.
    pub options: &'a QuantizeOptions,
    /// The model to quantize.
    pub model: &'a ModelConfig,
}

impl<'a> Treatment<'a> {
    /// Combines `options` and `model` without checks.
    pub fn new(options: &'a QuantizeOptions, model: &'a ModelConfig) -> Self {
        Self { options, model }
    }

    /// Checks the options by themselves and against the model: the number of blocks, the patterns, the shapes of the
    /// layers and the length of the windows.
    ///
    /// Errors: `Error::Input` naming the first option that cannot be used.
    pub fn validate(&self) -> Result<()> {
        self.options.validate()?;
        self.validate_mixture()?;
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

    /// Checks that the format has mixtures if one is named, and that this one exists.
    fn validate_mixture(&self) -> Result<()> {
        let format = self.format()?;
        let Some(name) = &self.options.mixture else { return Ok(()) };
        if format.name() != "gguf" {
            let found = format!("{name} for the format {}", format.name());
            let remedy = phrase!["choose ", Setting::Format.set_to("gguf"), ", or leave this out"];
            return Err(Error::input(Setting::Mixture, found, "a GGUF file, which has types by name", remedy));
        }
        if Mixture::named(name).is_some() {
            return Ok(());
        }
        let known: Vec<&str> = Mixture::ALL.iter().map(|mixture| mixture.name()).collect();
        Err(Error::input(Setting::Mixture, name.clone(), known.join(", "), "choose one of these"))
    }

    /// Checks that every pattern matches a layer, that at least one layer is quantized, and that the method can round
    /// layers of these shapes.
    fn validate_layers(&self) -> Result<()> {
        let QuantizeOptions { alpha, bits_for, skip, method, .. } = self.options;
        let names: Vec<String> = self.model.linear_names().into_iter().chain([self.model.head_linear().name]).collect();
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
        let quantizer = method.quantizer();
        let mut linears = self.model.linears().into_iter().filter(|linear| linear.quantizable);
        linears.try_for_each(|linear| quantizer.check_shape(self.options, [linear.rows, linear.columns]))
    }

    /// The layers to quantize with their bits, in model order.
    pub fn layers(&self) -> Vec<LayerPlan> {
        let head = self.options.lm_head.then(|| self.model.head_linear());
        let linears = self.model.linears().into_iter().chain(head);
        let plan = |linear: LinearSpec| Some(LayerPlan { bits: self.bits_of(&linear)?, name: linear.name });
        linears.filter_map(plan).collect()
    }

    /// Bits per code of the layer `linear`. `None` if the layer keeps its weight.
    pub fn bits_of(&self, linear: &LinearSpec) -> Option<u32> {
        if linear.quantizable { self.options.bits_of(&linear.name) } else { None }
    }

    /// Where the scales of the input of the stop at node `node` of block `layer` are folded. `None` if the method scales
    /// no inputs, if nothing that is quantized before the stop can take the scales, or if a layer of the stop keeps its
    /// weight, because it reads the scaled input, too.
    pub fn fold(&self, layer: usize, node: usize) -> Option<Fold> {
        let block = &self.model.blocks[layer];
        let quantized = |linear: &Linear| self.bits_of(&linear.at(layer)).is_some();
        if !self.options.method.quantizer().scales_input() || !block.group(node).iter().all(quantized) {
            return None;
        }
        let made_by = |path: &Name| block.groups().flatten().any(|linear| linear.path == *path && quantized(linear));
        block.fold(node).filter(|fold| fold.linear.as_ref().is_none_or(made_by))
    }

    /// What people should know of the run before it starts: which layers the method rounds without scales of their
    /// inputs. Each note is a sentence without a full stop.
    pub fn notes(&self) -> Vec<String> {
        if !self.options.method.quantizer().scales_input() {
            return Vec::new();
        }
        let unscaled = self.unscaled();
        let mut paths: Vec<&str> = Vec::new();
        for path in unscaled.iter().map(|path| path.split_once("{layer}.").map_or(&**path, |(_, inside)| inside)) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        let (method, count, paths) = (self.options.method.to_string().to_uppercase(), unscaled.len(), paths.join(", "));
        let layers = if count == 1 { "layer" } else { "layers" };
        let note = format!(
            "{method} scales no input of {count} {layers} ({paths}), because nothing before them can take the scales; it \
             only searches the ranges of their grids"
        );
        if count == 0 { Vec::new() } else { vec![note] }
    }

    /// The paths of all layers that are quantized without scales of their inputs, the output matrix included.
    fn unscaled(&self) -> Vec<String> {
        let blocks = self.options.blocks.unwrap_or(self.model.blocks.len());
        let mut unscaled = Vec::new();
        for (layer, block) in self.model.blocks.iter().enumerate().take(blocks) {
            for node in block.stops().filter(|&node| self.fold(layer, node).is_none()) {
                let quantized = block.group(node).iter().filter(|linear| self.bits_of(&linear.at(layer)).is_some());
                unscaled.extend(quantized.map(|linear| linear.path.text().to_owned()));
            }
        }
        let head = self.model.head_linear();
        unscaled.extend((self.options.lm_head && self.bits_of(&head).is_some()).then_some(head.name));
        unscaled
    }

    /// Inputs per grid. `None` if there is one grid per row. Methods without a grid also get `None`.
    pub fn group_size(&self) -> Option<usize> {
        if self.options.method.quantizer().off_grid().is_some() {
            return None;
        }
        match self.options.group_size {
            GroupSize::PerChannel => None,
            GroupSize::Columns(size) => Some(size),
            GroupSize::Auto => {
                let linears = self.model.linears().into_iter().filter(|linear| linear.quantizable);
                let widths: Vec<usize> = linears.map(|linear| linear.columns).collect();
                AUTOMATIC_GROUP_SIZES.into_iter().find(|size| widths.iter().all(|width| width % size == 0))
            }
        }
    }

    /// The form in which the method leaves layers: codes on grids, or plain numbers if the weights lie on no grid.
    pub fn form(&self) -> Form {
        if self.options.method.quantizer().off_grid().is_some() { Form::Dense } else { Form::Codes }
    }

    /// The format of the checkpoint: the one that the options name, or the one that suits the method.
    ///
    /// Errors: `Error::Input` if there is no such format, or if it cannot store what the method makes.
    pub fn format(&self) -> Result<&'static dyn Format> {
        let suitable = default_for(self.form());
        let Some(name) = &self.options.format else { return Ok(suitable) };
        let remedy = phrase!["leave ", Setting::Format, " out"];
        let Some(format) = named(name) else {
            return Err(Error::input(Setting::Format, name.clone(), suitable.name(), remedy));
        };
        let method = self.options.method;
        match method.quantizer().off_grid() {
            Some(why) if !format.stores(self.form()) => {
                let found = phrase![
                    name.clone(),
                    " for ",
                    Setting::Method.set_to(method.to_string()),
                    format!(", whose weights {why}")
                ];
                Err(Error::input(Setting::Format, found, suitable.name(), remedy))
            }
            _ => Ok(format),
        }
    }

    /// The properties of the run that a format needs.
    pub fn settings(&self) -> QuantizationSettings {
        QuantizationSettings {
            bits: self.options.bits,
            group_size: self.group_size(),
            symmetric: self.options.symmetry == Symmetry::Symmetric,
            mixture: self.options.mixture.as_deref().and_then(Mixture::named),
            damping: self.options.rounding_damping,
        }
    }

    /// Whether the result depends on the calibration text. It does if the method needs H, or if some layer may be
    /// corrected.
    pub fn needs_calibration(&self) -> bool {
        let QuantizeOptions { alpha, method, .. } = self.options;
        method.quantizer().needs().hessian.is_some() || alpha.corrects()
    }
}
