//! The table of all checkpoint formats, from which users choose one to write.
//!
//! A format is one file in this folder and one row of [`FORMATS`]. The trait that it implements is in
//! `checkpoint/format.rs`. A format that packs layers also has a row in the table of `layouts`, so that its checkpoints
//! can be read.

pub mod f32;
pub mod float;
pub mod gptq;
mod vllm;

use super::format::Format;
use crate::stored::Form;

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
