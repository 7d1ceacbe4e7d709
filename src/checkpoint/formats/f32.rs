//! The `f32` format: dequantized weights in F32, whatever the element type of the original.
//!
//! Files are twice the size of those of the `float` format, but no weight is rounded. A client that computes in F32
//! gets exactly the weights that the codes and scales represent, or the weights of a method that uses no grid.

use safetensors::Dtype;

use super::float;
use crate::Result;
use crate::checkpoint::format::{Format, GridWish, Part, PlannedLayer};
use crate::family::LinearSpec;
use crate::ops::grid::{GridSpec, ScaleType};
use crate::stored::{Form, StoredLinear};

/// Stores dequantized weights in F32.
#[derive(Debug)]
pub struct F32;

impl Format for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn summary(&self) -> &'static str {
        "The dequantized weights in F32, none of them rounded"
    }

    fn stores(&self, _: Form) -> bool {
        true
    }

    fn grid(&self, _: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        Ok(wish.with_zeros(ScaleType::F16))
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        vec![float::weight(&layer.spec, Dtype::F32)]
    }

    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Ok(vec![float::weight_bytes(layer, linear, Dtype::F32)?])
    }
}
