//! All formats: the table that users choose from, and that is asked who reads a quantized checkpoint.
//!
//! A format is one file here and one row of [`FORMATS`].

pub mod f32;
pub mod float;
pub mod gptq;
mod vllm;

use serde_json::Value;

use super::format::{Format, PackedLayers};
use crate::family::config::fields::Fields;
use crate::stored::Form;
use crate::{Error, Result};

/// The formats, in the order in which they are offered.
pub static FORMATS: &[&dyn Format] = &[&gptq::Gptq, &float::Float, &f32::F32];

/// The file in which older checkpoints describe how they are quantized, and in which some clients look first.
pub(super) const DESCRIPTION_FILE: &str = "quantize_config.json";

/// The format of that name.
pub fn named(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// The format in which layers of this form are stored unless another is asked for.
pub fn default_for(form: Form) -> &'static dyn Format {
    match form {
        Form::Codes => &gptq::Gptq,
        Form::Dense => &float::Float,
    }
}

/// How a checkpoint stores its quantized layers.
#[derive(Debug)]
pub struct Packing {
    /// What sentences call the layout.
    pub layout: &'static str,
    /// The layers.
    pub layers: Box<dyn PackedLayers>,
}

impl Packing {
    /// Reads `description`: what stands under `quantization_config` in a config.json, or a whole quantize_config.json. `subject`
    /// names the file in messages.
    ///
    /// Errors: `Error::Input` if no format reads it, or the one that does finds a field that cannot be used.
    pub fn open(description: &Value, subject: &str) -> Result<Self> {
        let Some(object) = description.as_object() else {
            return Err(unsupported(subject, "a quantization configuration that is no JSON object"));
        };
        for format in FORMATS {
            if let (Some(layout), Some(layers)) = (format.layout(), format.open(object, subject)?) {
                return Ok(Self { layout, layers });
            }
        }
        let method = Fields { subject, object }.text("quant_method")?.unwrap_or_default();
        Err(unsupported(subject, &format!("weights quantized with \"{method}\"")))
    }
}

fn unsupported(subject: &str, found: &str) -> Error {
    let layouts: Vec<&str> = FORMATS.iter().filter_map(|format| format.layout()).collect();
    let expected = format!("float weights or {}", layouts.join(" or "));
    Error::input(subject, found, expected, "use the original, unquantized checkpoint")
}
