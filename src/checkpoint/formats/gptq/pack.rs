//! Packs a quantized layer into the bytes of its four GPTQ tensors. `read` is the inverse.

use super::ZeroPoints;
use crate::checkpoint::bits;
use crate::checkpoint::floats::transpose;
use crate::stored::QuantizedLinear;

/// The contents of `qweight`, `qzeros`, `scales` and `g_idx`, little-endian, in the order of [`super::Layout::parts`].
pub fn pack(linear: &QuantizedLinear) -> Vec<Vec<u8>> {
    let g_idx: Vec<u32> = (0..linear.columns).map(|k| (k / linear.grid.group_size) as u32).collect();
    let scales = transpose(&linear.half_scales(), [linear.rows, linear.groups()]);
    vec![
        bits::bytes(&pack_codes(linear)),
        bits::bytes(&pack_zeros(linear)),
        scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        bits::bytes(&g_idx),
    ]
}

/// `qweight`, `[columns·bits/32, rows]`: column n is the bit string of the codes of row n.
fn pack_codes(linear: &QuantizedLinear) -> Vec<u32> {
    let mut words = vec![0; linear.codes.len() * linear.grid.bits as usize / 32];
    for (row, codes) in linear.codes.chunks_exact(linear.columns).enumerate() {
        for (index, word) in bits::pack(codes, linear.grid.bits).into_iter().enumerate() {
            words[index * linear.rows + row] = word;
        }
    }
    words
}

/// `qzeros`, `[groups, rows·bits/32]`: row g is the bit string of the zero points of group g, each less 1 in version 1.
fn pack_zeros(linear: &QuantizedLinear) -> Vec<u32> {
    let stored_below = u8::from(ZeroPoints::of(linear.grid.is_symmetric()) == ZeroPoints::V1);
    let zeros: Vec<u8> = transpose(&linear.zero_points(), [linear.rows, linear.groups()])
        .into_iter()
        .map(|z| z - stored_below)
        .collect();
    zeros.chunks_exact(linear.rows).flat_map(|group| bits::pack(group, linear.grid.bits)).collect()
}
