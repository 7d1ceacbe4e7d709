//! The `float` format: dequantized weights as an ordinary checkpoint, for clients that cannot read quantized layers.
//!
//! A weight is stored in F32 if the original was F32, and in F16 otherwise. F16 rounds s·(q − z) to 11 significant
//! bits, as in clients that dequantize in F16. BF16 would round it to 8 bits.

use safetensors::Dtype;

use crate::checkpoint::floats;
use crate::checkpoint::format::{Format, GridWish, Part, PlannedLayer};
use crate::error::{Setting, phrase};
use crate::family::{Layout, LinearSpec};
use crate::ops::grid::{GridSpec, ScaleType};
use crate::stored::{Form, StoredLinear};
use crate::{Error, Result};

/// Stores dequantized weights in F16, or in F32 where the original weight is F32.
#[derive(Debug)]
pub struct Float;

impl Format for Float {
    fn name(&self) -> &'static str {
        "float"
    }

    fn summary(&self) -> &'static str {
        "The dequantized weights as an ordinary checkpoint"
    }

    fn stores(&self, _: Form) -> bool {
        true
    }

    fn grid(&self, _: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        Ok(wish.with_zeros(ScaleType::F16))
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        vec![weight(&layer.spec, dtype(layer))]
    }

    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Ok(vec![weight_bytes(layer, linear, dtype(layer))?])
    }
}

/// Element type of the stored weight.
fn dtype(layer: &PlannedLayer) -> Dtype {
    if layer.original == Dtype::F32 { Dtype::F32 } else { Dtype::F16 }
}

/// The tensor that stores the weight of `linear` in the float type `dtype`.
pub(super) fn weight(linear: &LinearSpec, dtype: Dtype) -> Part {
    Part { name: linear.weight(), dtype, shape: linear.stored_shape() }
}

/// The content of the tensor of [`weight`]: s·(q − z), rounded to `dtype`. Errors: `Error::NotFinite` if a weight is
/// too large for `dtype`.
pub(super) fn weight_bytes(layer: &PlannedLayer, linear: &StoredLinear, dtype: Dtype) -> Result<Vec<u8>> {
    let weight = match layer.spec.layout {
        Layout::Rows => linear.dequantize(),
        Layout::Columns => floats::transpose(&linear.dequantize(), linear.shape()),
    };
    floats::encode(&weight, dtype).ok_or_else(|| Error::NotFinite {
        place: format!("{}.weight in {dtype}", linear.name()),
        remedy: phrase![
            "its weights are too large, use ",
            Setting::Format.set_to("gptq"),
            " or another ",
            Setting::Method,
        ],
    })
}
