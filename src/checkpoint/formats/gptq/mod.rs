//! The GPTQ format, which transformers, GPTQModel and vLLM read (formats.md, section a).
//!
//! A symmetric layer is stored as version 1 of the format (`gptq`), any other layer as version 2 (`gptq_v2`). Version 1
//! stores z − 1, and loaders disagree about how to decode z = 0. A symmetric layer has no zero point of 0.
//!
//! `pack` makes the tensors of a layer, `read` dequantizes them again, and `config` writes and reads the quantization
//! configuration.

mod config;
mod pack;
mod read;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::{codes_of, group_size_that_divides, vllm};
use crate::checkpoint::format::{Format, GridWish, Part, PlannedLayer, PlannedModel};
use crate::checkpoint::layout::{self, Opened, Origin, PackedLayers};
use crate::error::{Setting, phrase};
use crate::family::LinearSpec;
use crate::ops::grid::{GridSpec, ScaleType};
use crate::stored::{Form, StoredLinear};
use crate::{Error, Result};
use config::GptqConfig;

/// Stores packed codes, scales and zero points.
#[derive(Debug)]
pub struct Gptq;

impl Format for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn summary(&self) -> &'static str {
        "GPTQ layout, for transformers, GPTQModel and vLLM"
    }

    fn stores(&self, form: Form) -> bool {
        form == Form::Codes
    }

    /// Clients need whole 32-bit words along both sides of the weight, and a group size that divides the number of
    /// inputs (formats.md, section a and fact 8).
    fn grid(&self, linear: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        let LinearSpec { ref name, rows, columns, .. } = *linear;
        let bits = wish.bits;
        if !matches!(bits, 2 | 3 | 4 | 8) {
            let expected = "2, 3, 4 or 8, as the GPTQ format has it";
            let remedy = phrase!["choose one of these, or ", Setting::Format.set_to("compressed-tensors")];
            return Err(Error::input(Setting::Bits, bits.to_string(), expected, remedy));
        }
        for (side, count) in [("inputs", columns), ("outputs", rows)] {
            if !(count * bits as usize).is_multiple_of(32) {
                return Err(Error::input(
                    name,
                    format!("{count} {side} at {bits} bits"),
                    "whole 32-bit words, as the GPTQ format stores codes",
                    phrase!["choose other ", Setting::Bits, ", or ", Setting::Format.set_to("float")],
                ));
            }
        }
        group_size_that_divides(linear, wish, "GPTQ")?;
        Ok(wish.with_zeros(ScaleType::F16))
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        let LinearSpec { ref name, rows, columns, .. } = layer.spec;
        let GridSpec { bits, group_size, .. } = layer.grid;
        let symmetric = layer.grid.is_symmetric();
        let layout = Layout { rows, columns, bits, group_size, zero_points: ZeroPoints::of(symmetric) };
        layout.parts(name)
    }

    fn pack(&self, _: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Ok(pack::pack(codes_of(linear)?))
    }

    fn describe(&self, model: &PlannedModel, config: &mut Map<String, Value>) -> Vec<(String, Value)> {
        let description = config::description(model);
        config.insert("quantization_config".to_owned(), description.clone());
        vec![(super::DESCRIPTION_FILE.to_owned(), description)]
    }

    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        vllm::unequal_layers(model).into_iter().collect()
    }
}

/// The layout of the layers that this format writes.
pub static LAYOUT: layout::Layout = layout::Layout { name: "GPTQ", origin: Origin::Quantization, open };

fn open(description: &Map<String, Value>, subject: &str) -> Opened {
    let config = GptqConfig::read(description, subject)?;
    Ok(config.map(|config| Box::new(config) as Box<dyn PackedLayers>))
}

/// How the tensor `qzeros` stores a zero point z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ZeroPoints {
    /// Version 1, `gptq`: stores z − 1.
    V1,
    /// Version 2, `gptq_v2`: stores z.
    V2,
}

impl ZeroPoints {
    /// The version in which we write a layer.
    fn of(symmetric: bool) -> Self {
        if symmetric { Self::V1 } else { Self::V2 }
    }

    /// The value of `checkpoint_format` in the configuration.
    fn label(self) -> &'static str {
        match self {
            Self::V1 => "gptq",
            Self::V2 => "gptq_v2",
        }
    }
}

/// The sizes that decide the shapes of the four tensors of a layer, and how to read their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// Outputs.
    rows: usize,
    /// Inputs.
    columns: usize,
    /// Bits per code: 2, 3, 4 or 8.
    bits: u32,
    /// Inputs per group; equal to `columns` if there is one group per row.
    group_size: usize,
    /// How `qzeros` stores zero points.
    zero_points: ZeroPoints,
}

impl Layout {
    /// The tensors `qweight`, `qzeros`, `scales` and `g_idx` of the layer `module`, in the order in which they are
    /// written.
    fn parts(&self, module: &str) -> Vec<Part> {
        let groups = self.columns.div_ceil(self.group_size);
        let words = |n: usize| (n * self.bits as usize).div_ceil(32);
        let part = |suffix, dtype, shape| Part { name: format!("{module}.{suffix}"), dtype, shape };
        vec![
            part("qweight", Dtype::I32, vec![words(self.columns), self.rows]),
            part("qzeros", Dtype::I32, vec![groups, words(self.rows)]),
            part("scales", Dtype::F16, vec![groups, self.rows]),
            part("g_idx", Dtype::I32, vec![self.columns]),
        ]
    }
}
