//! Encodes f32 values as the bytes of a safetensors float type, and transposes matrices. The reader, the writer and the
//! float formats use it.

use half::{bf16, f16};
use safetensors::Dtype;

/// Rounds `values` to `dtype` and returns them as little-endian bytes. Returns `None` if a value is not finite or too
/// large for `dtype`, or if `dtype` is not F32, F16 or BF16.
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

/// Transposes a row-major matrix of the shape `[rows, columns]`.
pub fn transpose<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
