//! What a grid can be: bits, groups, zero points or offsets, and the types in which scales are stored.
//!
//! A checkpoint format says on which grid a layer lies. Searches, kernels and packers read it from a [`GridSpec`], and none of
//! them knows a format.

use serde::{Deserialize, Serialize};

/// Whether the grid is symmetric around zero or has a zero point that fits the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Symmetry {
    /// The range is ±max|w|, and the zero point is 2^(b−1).
    Symmetric,
    /// The range is [min, max], extended to include 0.
    Asymmetric,
}

/// The type in which a checkpoint stores scales or offsets. They are rounded to this type before codes are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleType {
    /// f32: nothing is rounded.
    F32,
    /// f16. The magnitude of a scale stays between the smallest positive f16 and the largest finite f16.
    F16,
    /// bf16.
    Bf16,
}

/// How the scales, or the offsets, of a layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steps {
    /// Each group has a number of its own.
    Own(ScaleType),
    /// Consecutive groups of a row share a unit of type f16. Each has a small whole number of units, as in the K-quants of
    /// llama.cpp.
    Shared {
        /// Bits of the whole number.
        bits: u32,
        /// Whether the whole number has a sign (in two's complement).
        signed: bool,
        /// Number of groups that share a unit.
        groups: usize,
    },
}

/// What stands for zero on a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Zero {
    /// This code, in every group: `ŵ = s·(q − z)`.
    Fixed(u32),
    /// A code of each group: `ŵ = s·(q − z)`.
    Code,
    /// Each group has a real offset: `ŵ = s·q + o`.
    Offset(Steps),
}

/// The kind of grid on which a layer is stored. Each row has one scale, and one zero point or offset, per group of consecutive
/// columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridSpec {
    /// Bits per code, 1 to 8.
    pub bits: u32,
    /// Group size: the number of columns per group, of which the last group may have fewer. It is n for one group per row.
    pub group_size: usize,
    /// What stands for zero.
    pub zero: Zero,
    /// How scales are stored.
    pub scale: Steps,
    /// Whether scales may be negative.
    pub signed: bool,
}

impl ScaleType {
    /// The number of this type nearest to `x`, as f32; ties go to even. Zero stays zero. Any other magnitude stays between the
    /// smallest positive and the largest finite f16 for [`ScaleType::F16`].
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => {
                if x == 0.0 {
                    x
                } else {
                    to_half(x.abs()).copysign(x)
                }
            }
            Self::Bf16 => {
                let bits = x.to_bits();
                f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
            }
        }
    }

    /// The number by which shaders know the type.
    pub(in crate::ops) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 2,
        }
    }
}

impl Steps {
    /// The type to which single numbers are rounded. Small whole numbers of a shared unit are not rounded one by one.
    pub(crate) fn own(self) -> ScaleType {
        match self {
            Self::Own(kind) => kind,
            Self::Shared { .. } => ScaleType::F32,
        }
    }

    /// The least and the greatest number of units of a group; `None` if each group has a number of its own.
    pub(crate) fn multiples(self) -> Option<[f32; 2]> {
        let Self::Shared { bits, signed, .. } = self else { return None };
        let count = (1u32 << bits) as f32;
        Some(if signed { [-count / 2.0, count / 2.0 - 1.0] } else { [0.0, count - 1.0] })
    }

    /// Whether the bits of shared numbers are 1 to 8, or 2 to 8 with a sign, and groups share a unit.
    fn is_possible(self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Shared { bits, signed, groups } => (1 + u32::from(signed)..=8).contains(&bits) && groups > 0,
        }
    }
}

impl GridSpec {
    /// A grid with zero points, `bits` bits per code, and a scale of type `scale` in each group of `group_size` columns.
    pub fn new(bits: u32, group_size: usize, symmetry: Symmetry, scale: ScaleType) -> Self {
        let zero = match symmetry {
            Symmetry::Symmetric => Zero::Fixed(1 << (bits - 1)),
            Symmetry::Asymmetric => Zero::Code,
        };
        Self { bits, group_size, zero, scale: Steps::Own(scale), signed: false }
    }

    /// A grid with real offsets: scales and offsets are of type `kind`.
    pub fn with_offsets(bits: u32, group_size: usize, kind: ScaleType) -> Self {
        let zero = Zero::Offset(Steps::Own(kind));
        Self { bits, group_size, zero, scale: Steps::Own(kind), signed: false }
    }

    /// Whether every zero point is 2^(bits−1).
    pub fn is_symmetric(&self) -> bool {
        self.zero == Zero::Fixed(1 << (self.bits - 1))
    }

    /// Whether groups have real offsets.
    pub fn has_offsets(&self) -> bool {
        matches!(self.zero, Zero::Offset(_))
    }

    /// The type to which single offsets are rounded; f32 where there are none.
    pub(crate) fn offset_type(&self) -> ScaleType {
        if let Zero::Offset(steps) = self.zero { steps.own() } else { ScaleType::F32 }
    }

    /// The largest code, 2^b − 1.
    pub fn top(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Number of groups that share a unit: of their scales, and of their offsets where these have one.
    pub fn shared_groups(&self) -> Option<usize> {
        match self.scale {
            Steps::Own(_) => None,
            Steps::Shared { groups, .. } => Some(groups),
        }
    }

    /// Whether bits, group size, a fixed zero point, and the numbers that share units are in range.
    pub(crate) fn is_possible(&self) -> bool {
        let zero = match self.zero {
            Zero::Fixed(code) => 1u32.checked_shl(self.bits).is_some_and(|codes| code < codes),
            Zero::Code => true,
            Zero::Offset(steps) => steps.is_possible(),
        };
        (1..=8).contains(&self.bits) && self.group_size > 0 && zero && self.scale.is_possible()
    }
}

/// Returns the f16 nearest to x ≥ 0, as f32; ties go to even. The result lies between the smallest positive f16 and the largest
/// finite f16.
#[inline(always)]
fn to_half(x: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    const SMALLEST: f32 = 1.0 / 16_777_216.0;
    let bits = x.clamp(SMALLEST_NORMAL, 65504.0).to_bits();
    let normal = f32::from_bits((bits + 0xfff + ((bits >> 13) & 1)) & 0xffff_e000);
    let subnormal = (x.min(SMALLEST_NORMAL) / SMALLEST).round_ties_even().max(1.0) * SMALLEST;
    if x < SMALLEST_NORMAL { subnormal } else { normal }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::{ScaleType, to_half};

    #[test]
    fn halves_are_rounded_as_the_crate_half_does() {
        for i in 0..100_000u32 {
            let x = f32::from_bits(0x3300_0000 + i * 2_654_435 % 0x1480_0000);
            let expected = f16::from_f32(x).to_f32().clamp(2.0f32.powi(-24), 65504.0);
            assert_eq!(to_half(x), expected, "{x:e}");
            assert_eq!(ScaleType::F16.round(-x), -expected, "{x:e}");
            assert_eq!(ScaleType::Bf16.round(-x), bf16::from_f32(-x).to_f32(), "{x:e}");
        }
        for (x, expected) in [(0.0, 2.0f32.powi(-24)), (1e-30, 2.0f32.powi(-24)), (65519.0, 65504.0), (1e30, 65504.0)] {
            assert_eq!(to_half(x), expected);
        }
        assert_eq!(ScaleType::F16.round(0.0), 0.0);
    }
}
