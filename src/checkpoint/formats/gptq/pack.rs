//! Packs a quantized layer into the bytes of its four GPTQ tensors. `read` is the inverse.

use super::ZeroPoints;
use crate::checkpoint::bits;
use crate::stored::QuantizedLinear;

/// The contents of `qweight`, `qzeros`, `scales` and `g_idx`, little-endian, in the order of [`super::Layout::parts`].
pub fn pack(linear: &QuantizedLinear) -> Vec<Vec<u8>> {
    let g_idx: Vec<u32> = (0..linear.columns).map(|k| (k / linear.group_size) as u32).collect();
    let scales = transposed(&linear.scales, linear.groups());
    vec![
        little_endian(&pack_codes(linear)),
        little_endian(&pack_zeros(linear)),
        scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        little_endian(&g_idx),
    ]
}

/// `qweight`, `[columns·bits/32, rows]`: column n is the bit string of the codes of row n.
fn pack_codes(linear: &QuantizedLinear) -> Vec<u32> {
    let mut words = vec![0; linear.codes.len() * linear.bits as usize / 32];
    for (row, codes) in linear.codes.chunks_exact(linear.columns).enumerate() {
        for (index, word) in bits::pack(codes, linear.bits).into_iter().enumerate() {
            words[index * linear.rows + row] = word;
        }
    }
    words
}

/// `qzeros`, `[groups, rows·bits/32]`: row g is the bit string of the zero points of group g, each less 1 in version 1.
fn pack_zeros(linear: &QuantizedLinear) -> Vec<u32> {
    let stored_below = u8::from(ZeroPoints::of(linear.symmetric) == ZeroPoints::V1);
    let zeros: Vec<u8> = transposed(&linear.zeros, linear.groups()).into_iter().map(|z| z - stored_below).collect();
    zeros.chunks_exact(linear.rows).flat_map(|group| bits::pack(group, linear.bits)).collect()
}

fn little_endian(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Transposes a row-major matrix `[n, columns]` to `[columns, n]`.
fn transposed<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}
