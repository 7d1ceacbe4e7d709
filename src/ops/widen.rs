//! Conversion of the elements of a checkpoint to f32. The shader is `widen`.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::spread_elements;
use crate::{Error, Result};

/// Number of elements that one thread converts at a time.
const STRETCH: usize = 1 << 16;

/// The type of the stored elements of a tensor. They are little-endian and contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

uniform! {
    struct Params of "widen" {
        words: u32,
        count: u32,
        first: u32,
        stride: u32,
    }
}

/// Converts stored elements to f32, exactly, and writes them to the elements `range` of `out`, which may have any shape.
///
/// `words`: the stored elements for `range` and nothing else, as [`Recorder::upload_bytes`] arranges them. `flag`: `[1]`; it
/// becomes 1 if one of the elements is a NaN or an infinity, and is not changed otherwise. Errors: `Error::Shape` if the shapes
/// do not match.
pub fn widen(
    rec: &mut Recorder,
    encoding: Encoding,
    words: &Tensor<u32>,
    range: Range<usize>,
    out: &mut Tensor,
    flag: &mut Tensor<u32>,
) -> Result<()> {
    let bytes = range.len() * encoding.size();
    words.expect_shape("widen", &[bytes.div_ceil(4)])?;
    flag.expect_shape("widen", &[1])?;
    if range.start > range.end || range.end > out.len() {
        return Err(Error::shape("widen", format!("elements {range:?} of {:?}", out.shape())));
    }
    if range.is_empty() {
        return Ok(());
    }
    if !rec.is_gpu() {
        let stored: Vec<u8> = words.host().iter().flat_map(|word| word.to_le_bytes()).collect();
        if !encoding.decode(&stored[..bytes], &mut out.host_mut()[range]) {
            flag.host_mut()[0] = 1;
        }
        return Ok(());
    }
    let (workgroups, stride) = spread_elements(words.len());
    let params = Params { words: words.len() as u32, count: range.len() as u32, first: range.start as u32, stride };
    rec.dispatch(Dispatch {
        kernel: encoding.kernel(),
        params: bytemuck::bytes_of(&params),
        inputs: &[words.buffer()],
        outputs: &[out.buffer(), flag.buffer()],
        workgroups,
        work: range.len() as f64,
    })
}

impl Encoding {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Name of the kernel that converts this encoding.
    fn kernel(self) -> &'static str {
        match self {
            Self::F32 => "widen_f32",
            Self::F16 => "widen_f16",
            Self::Bf16 => "widen_bf16",
        }
    }

    /// The CPU twin: converts the stored elements and writes them to `out`, which has the same number of elements. Returns
    /// whether all elements are finite.
    pub(crate) fn decode(self, stored: &[u8], out: &mut [f32]) -> bool {
        let pieces = stored.par_chunks(STRETCH * self.size()).zip(out.par_chunks_mut(STRETCH));
        let finite = pieces.map(|(stored, out)| match self {
            Self::F32 => convert(stored, out, f32::from_le_bytes),
            Self::F16 => convert(stored, out, |element| f16::from_le_bytes(element).to_f32()),
            Self::Bf16 => convert(stored, out, |element| bf16::from_le_bytes(element).to_f32()),
        });
        finite.reduce(|| true, |a, b| a && b)
    }
}

/// Converts elements of SIZE bytes with `element`. Returns whether all of them are finite.
fn convert<const SIZE: usize>(stored: &[u8], out: &mut [f32], element: impl Fn([u8; SIZE]) -> f32) -> bool {
    let mut finite = true;
    for (out, &stored) in out.iter_mut().zip(stored.as_chunks().0) {
        *out = element(stored);
        finite &= out.is_finite();
    }
    finite
}
