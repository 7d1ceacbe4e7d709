//! Dense packing of small codes into 32-bit words. The GPTQ format packs codes and zero points this way at every bit
//! width (formats.md, notation).
//!
//! With b bits per code, element j takes bits j·b to j·b + b − 1 of a little-endian bit string. An element may straddle
//! two words.

/// Packs `values` into the fewest words that hold them. Each value must be below 2^`bits`. Unused bits of the last word
/// are zero.
pub fn pack(values: &[u8], bits: u32) -> Vec<u32> {
    let mut words = vec![0u32; (values.len() * bits as usize).div_ceil(32)];
    for (j, &value) in values.iter().enumerate() {
        let first = j * bits as usize;
        let shifted = u64::from(value) << (first % 32);
        words[first / 32] |= shifted as u32;
        if first % 32 + bits as usize > 32 {
            words[first / 32 + 1] |= (shifted >> 32) as u32;
        }
    }
    words
}

/// The bytes of `words`, little-endian.
pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Unpacks the first `count` values of `bits` bits each. Panics if `words` is too short to hold them.
pub fn unpack(words: &[u32], bits: u32, count: usize) -> Vec<u8> {
    let mask = (1u64 << bits) - 1;
    let value = |j: usize| {
        let first = j * bits as usize;
        let low = u64::from(words[first / 32]);
        let straddles = first % 32 + bits as usize > 32;
        let high = if straddles { u64::from(words[first / 32 + 1]) } else { 0 };
        (((high << 32 | low) >> (first % 32)) & mask) as u8
    };
    (0..count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Packs one bit at a time, straight from the definition.
    fn pack_bit_by_bit(values: &[u8], bits: u32) -> Vec<u32> {
        let mut words = vec![0u32; (values.len() * bits as usize).div_ceil(32)];
        for (j, value) in values.iter().enumerate() {
            for bit in 0..bits as usize {
                let position = j * bits as usize + bit;
                words[position / 32] |= u32::from(value >> bit & 1) << (position % 32);
            }
        }
        words
    }

    proptest! {
        #[test]
        fn packing_agrees_with_the_definition_and_inverts(bits in 1u32..=8, raw in prop::collection::vec(any::<u8>(), 0..300)) {
            let values: Vec<u8> = raw.iter().map(|v| (u32::from(*v) & ((1 << bits) - 1)) as u8).collect();
            let words = pack(&values, bits);
            prop_assert_eq!(&words, &pack_bit_by_bit(&values, bits));
            prop_assert_eq!(unpack(&words, bits, values.len()), values);
        }
    }

    #[test]
    fn three_bits_lie_as_the_format_describes() {
        // formats.md, section a: word 0 holds v0..v9 and the low 2 bits of v10. Word 1 holds the high bit of v10, then
        // v11..v20 and the low bit of v21. Word 2 holds the high 2 bits of v21 and then v22..v31.
        let v: Vec<u8> = (0..32u8).map(|i| (i * 5 + 3) % 8).collect();
        let w = |i: usize| u32::from(v[i]);
        let mut expected = [(w(10) & 3) << 30, w(10) >> 2 | (w(21) & 1) << 31, w(21) >> 1];
        for i in 0..10 {
            expected[0] |= w(i) << (3 * i);
            expected[1] |= w(11 + i) << (3 * i + 1);
            expected[2] |= w(22 + i) << (3 * i + 2);
        }
        assert_eq!(pack(&v, 3), expected);

        // A case computed by hand: all values are zero except v10 = 0b101, v21 = 0b110 and v31 = 0b011.
        let mut sparse = [0u8; 32];
        (sparse[10], sparse[21], sparse[31]) = (0b101, 0b110, 0b011);
        assert_eq!(pack(&sparse, 3), [0x4000_0000, 0x0000_0001, 0x6000_0003]);
    }

    #[test]
    fn symmetric_four_bit_zeros_make_the_well_known_word() {
        assert_eq!(pack(&[7; 8], 4), [0x7777_7777]);
    }
}
