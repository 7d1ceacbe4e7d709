//! MXFP4, in which gpt-oss was released: 4-bit floats, 32 of which share a power of two.
//!
//! A weight NAME of shape [.., columns] is stored as two tensors of bytes: NAME_blocks of shape [.., columns/32, 16]
//! holds two numbers per byte, the first in the low half, and NAME_scales of shape [.., columns/32] holds the exponents
//! s of the factors 2^(s − 127). In gpt-oss, NAME has no ending `.weight`. For a linear layer `X.weight`, NAME may be
//! that or X alone.

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::checkpoint::format::Part;
use crate::checkpoint::layout::{Layout, Lookup, Opened, Origin, PackedLayers, PackedWeight, PartData, module_of};
use crate::device::recycled;
use crate::family::config::fields::Fields;
use crate::{Error, Result};

/// MXFP4 blocks as gpt-oss stores them.
pub static MXFP4: Layout = Layout { name: "MXFP4", origin: Origin::Release, open };

/// Numbers that share a factor.
const BLOCK: usize = 32;
/// The numbers without sign that 3 bits encode. The fourth bit is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn open(description: &Map<String, Value>, subject: &str) -> Opened {
    let method = Fields::new(subject, description).text("quant_method")?;
    Ok((method == Some("mxfp4")).then(|| Box::new(Blocks) as Box<dyn PackedLayers>))
}

#[derive(Debug)]
struct Blocks;

impl PackedLayers for Blocks {
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>> {
        let (columns, outer) = shape.split_last()?;
        if !columns.is_multiple_of(BLOCK) {
            return None;
        }
        let base = [name, module_of(name)].into_iter().find(|base| stored(&format!("{base}_blocks")).is_some())?;
        let part = |suffix: &str, inner: &[usize]| Part {
            name: format!("{base}_{suffix}"),
            dtype: Dtype::U8,
            shape: [outer, inner].concat(),
        };
        Some(vec![part("blocks", &[columns / BLOCK, BLOCK / 2]), part("scales", &[columns / BLOCK])])
    }

    fn unpack(&self, weight: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let [PartData::Bytes(blocks), PartData::Bytes(scales)] = &weight.parts[..] else {
            return Err(Error::shape("mxfp4::unpack", format!("{}: not its two tensors", weight.name)));
        };
        let elements = weight.elements();
        let (first, last) = (elements.start / BLOCK, elements.end / BLOCK);
        let mut values = recycled(elements.len());
        let blocks = blocks[first * BLOCK / 2..last * BLOCK / 2].par_chunks(BLOCK / 2);
        let pieces = values.par_chunks_mut(BLOCK).zip(blocks).zip(&scales[first..last]);
        let finite = pieces.map(|((out, block), &exponent)| unpack_block(block, exponent, out));
        match finite.reduce(|| true, |a, b| a && b) {
            true => Ok(values),
            false => Err(weight.not_finite()),
        }
    }
}

/// Writes the numbers of one block to `out`. Returns whether all of them are finite.
fn unpack_block(block: &[u8], exponent: u8, out: &mut [f32]) -> bool {
    let factor = power_of_two(exponent);
    for (pair, &byte) in out.chunks_mut(2).zip(block) {
        for (value, code) in pair.iter_mut().zip([byte & 15, byte >> 4]) {
            let magnitude = MAGNITUDES[usize::from(code & 7)];
            *value = factor * if code & 8 == 0 { magnitude } else { -magnitude };
        }
    }
    out.iter().all(|value| value.is_finite())
}

/// 2^(s − 127), or NaN for s = 255, as the type E8M0 defines it.
fn power_of_two(s: u8) -> f32 {
    match s {
        // 2^−127 lies below the normal numbers.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(s) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_powers_of_two() {
        for s in 0..255u8 {
            assert_eq!(f64::from(power_of_two(s)), 2f64.powi(i32::from(s) - 127), "{s}");
        }
        assert!(power_of_two(255).is_nan());
    }
}
