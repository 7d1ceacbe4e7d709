//! The dequantized weights in F32, whatever type the original has: twice the size of `float`, and nothing is rounded. A client that
//! computes in F32 gets the very weights that codes and scales, or a method without a grid, stand for.

use safetensors::Dtype;

use super::float;
use crate::Result;
use crate::checkpoint::format::{Format, Part, PlannedLayer};
use crate::family::LinearSpec;
use crate::stored::{Form, LayerGrid, StoredLinear};

/// Dequantized weights in F32.
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

    fn grid(&self, _: &LinearSpec, wish: LayerGrid) -> Result<LayerGrid> {
        Ok(wish)
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        vec![float::weight(&layer.spec, Dtype::F32)]
    }

    fn pack(&self, _: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Ok(vec![float::weight_bytes(linear, Dtype::F32)?])
    }
}
