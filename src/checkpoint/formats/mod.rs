//! The table of all checkpoint formats. Users choose a format from it to write, and the reader asks each of them
//! whether it can read a quantized checkpoint.
//!
//! A format is one file in this folder and one row of [`FORMATS`]. The trait that it implements is in
//! `checkpoint/format.rs`.

pub mod f32;
pub mod float;
pub mod gptq;
mod vllm;

use serde_json::Value;

use super::format::{Format, PackedLayers};
use crate::family::config::fields::Fields;
use crate::stored::Form;
use crate::{Error, Result};

/// All formats, in the order in which they are offered to users.
pub static FORMATS: &[&dyn Format] = &[&gptq::Gptq, &float::Float, &f32::F32];

/// The file with the quantization configuration of older checkpoints. Some clients look for it first.
pub(super) const DESCRIPTION_FILE: &str = "quantize_config.json";

/// The format called `name`, if there is one.
pub fn named(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// The format for layers in the form `form`, unless the user asks for another one.
pub fn default_for(form: Form) -> &'static dyn Format {
    match form {
        Form::Codes => &gptq::Gptq,
        Form::Dense => &float::Float,
    }
}

/// The packed layers of a quantized checkpoint, with the name of their layout.
#[derive(Debug)]
pub struct Packing {
    /// Name of the layout in messages, such as "GPTQ".
    pub layout: &'static str,
    /// Reader of the layers.
    pub layers: Box<dyn PackedLayers>,
}

impl Packing {
    /// Reads a quantization configuration: the value of `quantization_config` in a config.json, or a whole
    /// quantize_config.json. `subject` names the file in messages.
    ///
    /// Errors: `Error::Input` if no format can read it, or if the format that can finds a field that cannot be used.
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
