//! The table of all checkpoint formats, from which users choose one to write.
//!
//! A format is one file in this folder and one row of [`FORMATS`]. The trait that it implements is in
//! `checkpoint/format.rs`. A format that packs layers also has a row in the table of `layouts`, so that its checkpoints
//! can be read.

pub mod awq;
pub mod compressed_tensors;
pub mod f32;
pub mod float;
pub mod gguf;
pub mod gptq;
mod kinds;
pub mod mlx;
mod vllm;

use super::format::{Format, GridWish};
use crate::error::{Setting, phrase};
use crate::family::LinearSpec;
use crate::stored::{Form, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// All formats, in the order in which they are offered to users.
pub static FORMATS: &[&dyn Format] =
    &[&gptq::Gptq, &compressed_tensors::CompressedTensors, &awq::Awq, &mlx::Mlx, &gguf::Gguf, &float::Float, &f32::F32];

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

/// The codes of a layer. Errors: `Error::Shape` for a weight that lies on no grid.
fn codes_of(linear: &StoredLinear) -> Result<&QuantizedLinear> {
    match linear {
        StoredLinear::Codes(codes) => Ok(codes),
        StoredLinear::Dense(dense) => {
            Err(Error::shape("put_linear", format!("{}: a weight without codes", dense.name)))
        }
    }
}

/// Checks that the group size of `wish` divides the inputs of `linear`. No client loads other groups (formats.md, fact
/// 8). `format`: name of the format in the message.
///
/// Errors: `Error::Input` naming a group size that fits.
fn group_size_that_divides(linear: &LinearSpec, wish: GridWish<'_>, format: &str) -> Result<()> {
    let LinearSpec { ref name, columns, .. } = *linear;
    if wish.group_size > 0 && columns.is_multiple_of(wish.group_size) {
        return Ok(());
    }
    let fitting = [128, 64, 32].into_iter().find(|&size| columns.is_multiple_of(size));
    let fitting = fitting.map_or("-1".to_owned(), |size| size.to_string());
    Err(Error::input(
        Setting::GroupSize,
        format!("{} for the {columns} inputs of {name}", wish.group_size),
        format!("a group size that divides them, as the {format} format demands"),
        phrase!["choose ", Setting::GroupSize.set_to(fitting)],
    ))
}
