//! The table of all layouts of packed weights. The reader asks each of them whether it can read a checkpoint.
//!
//! A layout is a row of [`LAYOUTS`]. That of a format which writes packed layers stands in the folder of the format;
//! any other is one file in this folder. The trait behind a layout is in `checkpoint/layout.rs`.

mod fp8;
mod mxfp4;

use serde_json::{Map, Value};

use super::formats::{awq, compressed_tensors, gptq, mlx};
use super::layout::{Layout, PackedLayers};
use crate::family::config::fields::Fields;
use crate::{Error, Result};

/// All layouts that can be read.
pub static LAYOUTS: [&Layout; 7] = [
    &gptq::LAYOUT,
    &compressed_tensors::LAYOUT,
    &awq::LAYOUT,
    &mlx::LAYOUT,
    &fp8::FP8,
    &fp8::COMPRESSED_TENSORS,
    &mxfp4::MXFP4,
];

/// Quantization methods whose checkpoints cannot be read: the name in `quant_method`, and what the method stores.
const UNREADABLE: [(&str, &str); 16] = [
    ("aqlm", "codes of additive codebooks"),
    ("auto-round", "AutoRound's packed codes"),
    ("bitnet", "ternary weights"),
    ("bitsandbytes", "packed codes of bitsandbytes in 4 or 8 bits"),
    ("eetq", "8-bit integers"),
    ("fbgemm_fp8", "FP8 numbers in the layout of FBGEMM"),
    ("higgs", "codes of HIGGS"),
    ("hqq", "packed codes of HQQ"),
    ("modelopt", "numbers in the layouts of NVIDIA ModelOpt"),
    ("mxfp8", "FP8 numbers with shared exponents"),
    ("nvfp4", "4-bit floats of NVIDIA"),
    ("quanto", "packed codes of Quanto"),
    ("quark", "numbers in the layouts of AMD Quark"),
    ("spqr", "codes of SpQR"),
    ("torchao", "tensors of torchao"),
    ("vptq", "codes of vector codebooks"),
];

/// The packed weights of a checkpoint, with their layout.
#[derive(Debug)]
pub struct Packing {
    /// The layout.
    pub layout: &'static Layout,
    /// Reader of the weights.
    pub layers: Box<dyn PackedLayers>,
}

impl Packing {
    /// Reads the quantization configuration in `config`, the content of a config.json. `subject` names the file in
    /// messages. Returns `None` if there is none.
    ///
    /// Errors: as [`Packing::open`].
    pub fn of_model(config: &Map<String, Value>, subject: &str) -> Result<Option<Self>> {
        let fields = Fields::new(subject, config);
        // MLX has a key of its own, and copies it to quantization_config without the name of a method.
        let own = fields.get(mlx::KEY).and_then(Value::as_object).filter(|own| own.contains_key("bits"));
        if let Some(layers) = own.map(|own| (mlx::LAYOUT.open)(own, subject)).transpose()?.flatten() {
            return Ok(Some(Self { layout: &mlx::LAYOUT, layers }));
        }
        fields.get("quantization_config").map(|description| Self::open(description, subject)).transpose()
    }

    /// Reads a quantization configuration: the value of `quantization_config` in a config.json, or a whole
    /// quantize_config.json. `subject` names the file in messages.
    ///
    /// Errors: `Error::Input` if no layout can read it, or if the layout that can finds a field that cannot be used.
    pub fn open(description: &Value, subject: &str) -> Result<Self> {
        let Some(object) = description.as_object() else {
            return Err(unreadable(subject, "a quantization configuration that is no JSON object"));
        };
        for layout in LAYOUTS {
            if let Some(layers) = (layout.open)(object, subject)? {
                return Ok(Self { layout, layers });
            }
        }
        let method = Fields::new(subject, object).text("quant_method")?.unwrap_or_default();
        let content = UNREADABLE.iter().find(|(name, _)| *name == method).map(|(_, content)| format!(": {content}"));
        Err(unreadable(subject, &format!("weights quantized with \"{method}\"{}", content.unwrap_or_default())))
    }
}

/// The error for a checkpoint whose weights no layout can read.
fn unreadable(subject: &str, found: &str) -> Error {
    let mut names: Vec<&str> = ["float weights"].into_iter().chain(LAYOUTS.map(|layout| layout.name)).collect();
    names.dedup();
    let last = names.pop().unwrap_or_default();
    let expected = format!("{} or {last}", names.join(", "));
    Error::input(subject, found, expected, "choose the original, unquantized model")
}
