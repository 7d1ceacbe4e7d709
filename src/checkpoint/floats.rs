//! Numbers as the bytes of a float type.

use half::{bf16, f16};
use safetensors::Dtype;

/// `values` rounded to `dtype`, little-endian; `None` if one is too large for it or not finite, or the type is no float type.
pub fn encode(values: &[f32], dtype: Dtype) -> Option<Vec<u8>> {
    match dtype {
        Dtype::F32 => {
            values.iter().all(|v| v.is_finite()).then(|| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        Dtype::F16 => {
            let rounded: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            rounded.iter().all(|v| v.is_finite()).then(|| rounded.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        Dtype::BF16 => {
            let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            rounded.iter().all(|v| v.is_finite()).then(|| rounded.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        _ => None,
    }
}
