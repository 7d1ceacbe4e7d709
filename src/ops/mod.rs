//! The kernels: one file each, with the checks of shapes, the dispatch of the shader of the same name, and the CPU twin.
//!
//! An op takes the recorder first. On the CPU it computes at once. On a GPU it records a dispatch. Ops know no model. `tier` opens a
//! device and decides which kernels it uses.

// Its macro declares the uniform blocks of the modules after it.
#[macro_use]
pub mod uniform;

pub mod add;
pub mod attention;
pub mod cholesky;
pub mod clip;
pub(crate) mod cooperative;
pub mod dequantize;
pub mod descent;
pub mod embedding;
pub mod gptq;
pub mod gram;
pub mod grid;
pub mod grouped_product;
pub mod kl;
pub mod layer_norm;
pub mod magnitude;
mod math;
pub mod matmul;
pub mod nll;
pub mod permute;
pub mod pieces;
pub mod reduce;
pub mod refit;
pub mod rms_norm;
pub mod rope;
pub mod rtn;
pub mod scale;
pub mod silu_mul;
pub mod solve;
pub mod tier;
mod walk;
pub mod widen;

/// Where tokens stand: in sequences of `seq_len` tokens, the first of each at position `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Tokens that a sequence has before those in hand: 0 unless it is computed in pieces.
    pub first: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
}

impl Positions {
    /// Sequences of `seq_len` tokens from their beginning.
    pub fn whole(seq_len: usize) -> Self {
        Self { first: 0, seq_len }
    }

    /// The position after the last token.
    pub fn end(&self) -> usize {
        self.first + self.seq_len
    }
}

/// Spreads `count` workgroups over two axes, since one axis may hold only 65535: `[x, y, 1]` with `x·y ≥ count`.
/// The shader gets `x` and ignores indices of `count` and above: a short x leaves few of them.
pub(crate) fn spread(count: usize) -> [usize; 3] {
    let x = count.clamp(1, 4096);
    [x, count.div_ceil(x), 1]
}

/// As [`spread`], for workgroups of 256 that have one invocation per element; also the invocations along x.
pub(crate) fn spread_elements(count: usize) -> ([usize; 3], u32) {
    let workgroups = spread(count.div_ceil(256));
    (workgroups, (workgroups[0] * 256) as u32)
}

/// `x` between the bounds, which must be in order. Unlike `f32::clamp` this is two instructions in a vectorised loop.
#[inline(always)]
pub(crate) fn bounded(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// An integer from 0 to 255 as `u32`: one addition and one mask in a vectorised loop, where `as` also saturates.
#[inline(always)]
pub(crate) fn code(level: f32) -> u32 {
    (level + 8_388_608.0).to_bits() & 0xff
}
