//! Where the parts of a block lie in its bytes.
//!
//! All types spread small numbers over bytes in one way, a [`Plane`]; they differ in its measures. Only the scales of
//! Q4_K and Q5_K have a layout of their own, which is in `k_blocks`.

use super::types::BlockType;

/// Some bits of a sequence of small numbers. `stride` bytes hold `stride`·8/`bits` numbers: byte j has the numbers j,
/// j + `stride`, j + 2·`stride` …, from its low bits up. Then follow the next `stride` bytes.
pub(super) struct Plane {
    /// The first byte in the block.
    at: usize,
    /// Bits of each number: 1, 2, 4 or 8. Numbers of 8 bits are stored with the highest bit inverted. So a number
    /// n + 128 is there as the signed byte n.
    bits: u32,
    stride: usize,
}

impl Plane {
    fn mask(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    fn flip(&self) -> u8 {
        if self.bits == 8 { 0x80 } else { 0 }
    }
}

/// Writes `numbers` to a block of zeros. The first plane has their lowest bits, the next one the bits above.
pub(super) fn put(planes: &[Plane], numbers: &[u8], block: &mut [u8]) {
    let mut shift = 0;
    for plane in planes {
        let (mask, flip) = (plane.mask(), plane.flip());
        let bytes = block[plane.at..].chunks_exact_mut(plane.stride);
        for (bytes, numbers) in bytes.zip(numbers.chunks(plane.stride * (8 / plane.bits) as usize)) {
            for (place, numbers) in numbers.chunks(plane.stride).enumerate() {
                let left = place as u32 * plane.bits;
                bytes
                    .iter_mut()
                    .zip(numbers)
                    .for_each(|(byte, number)| *byte |= (number >> shift & mask ^ flip) << left);
            }
        }
        shift += plane.bits;
    }
}

/// Reads numbers that [`put`] wrote, and replaces all of `numbers`.
pub(super) fn take(planes: &[Plane], block: &[u8], numbers: &mut [u8]) {
    numbers.fill(0);
    let mut shift = 0;
    for plane in planes {
        let (mask, flip) = (plane.mask(), plane.flip());
        let bytes = block[plane.at..].chunks_exact(plane.stride);
        for (bytes, numbers) in bytes.zip(numbers.chunks_mut(plane.stride * (8 / plane.bits) as usize)) {
            for (place, numbers) in numbers.chunks_mut(plane.stride).enumerate() {
                let right = place as u32 * plane.bits;
                bytes.iter().zip(numbers).for_each(|(byte, number)| *number |= (byte >> right & mask ^ flip) << shift);
            }
        }
        shift += plane.bits;
    }
}

/// Where a block of the K types has the small numbers of its groups: those of the scales, then those of the offsets if
/// the type has any.
pub(super) enum SmallNumbers {
    /// In planes. Signed numbers are raised to unsigned ones.
    Planes(&'static [Plane]),
    /// Eight and eight numbers of 6 bits in 12 bytes from here on, as `k_blocks` describes.
    Pairs(usize),
}

/// The parts of a block.
pub(super) struct Fields {
    /// The planes of the codes, the lowest bits first.
    pub codes: &'static [Plane],
    /// The first byte of the scale, or of the unit of the scales. An offset or its unit follows it.
    pub scale: usize,
    /// The small numbers of the K types.
    pub small: Option<SmallNumbers>,
}

/// A plane that begins at the byte `at`.
const fn plane(at: usize, bits: u32, stride: usize) -> Plane {
    Plane { at, bits, stride }
}

impl Fields {
    /// The parts of a block of this type. `None` for plain floats.
    pub fn of(block_type: BlockType) -> Option<Self> {
        // A block that begins with its scale, with the planes of its codes.
        let scale_first = |codes: &'static [Plane]| Self { codes, scale: 0, small: None };
        Some(match block_type {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => return None,
            BlockType::Q8_0 => scale_first(const { &[plane(2, 8, 32)] }),
            BlockType::Q4_0 | BlockType::Iq4Nl => scale_first(const { &[plane(2, 4, 16)] }),
            BlockType::Q4_1 => scale_first(const { &[plane(4, 4, 16)] }),
            BlockType::Q5_0 => scale_first(const { &[plane(6, 4, 16), plane(2, 1, 1)] }),
            BlockType::Q5_1 => scale_first(const { &[plane(8, 4, 16), plane(4, 1, 1)] }),
            BlockType::Q2_0 => scale_first(const { &[plane(2, 2, 1)] }),
            BlockType::Mxfp4 => scale_first(const { &[plane(1, 4, 16)] }),
            BlockType::Q2K => Self {
                codes: const { &[plane(16, 2, 32)] },
                scale: 80,
                small: Some(SmallNumbers::Planes(const { &[plane(0, 4, 16)] })),
            },
            BlockType::Q3K => Self {
                codes: const { &[plane(32, 2, 32), plane(0, 1, 32)] },
                scale: 108,
                small: Some(SmallNumbers::Planes(const { &[plane(96, 4, 8), plane(104, 2, 4)] })),
            },
            BlockType::Q4K => {
                Self { codes: const { &[plane(16, 4, 32)] }, scale: 0, small: Some(SmallNumbers::Pairs(4)) }
            }
            BlockType::Q5K => Self {
                codes: const { &[plane(48, 4, 32), plane(16, 1, 32)] },
                scale: 0,
                small: Some(SmallNumbers::Pairs(4)),
            },
            BlockType::Q6K => Self {
                codes: const { &[plane(0, 4, 64), plane(128, 2, 32)] },
                scale: 208,
                small: Some(SmallNumbers::Planes(const { &[plane(192, 8, 16)] })),
            },
        })
    }
}
