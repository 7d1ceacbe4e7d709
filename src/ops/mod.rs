//! The ops: the computations that the engine, the methods and the evaluation are made of.
//!
//! Each file holds one op or a few related ones. It checks the shapes, dispatches the shaders of its kernels in `shaders/`, and
//! has the CPU twin, which computes the same result on the CPU. Every op takes the recorder as its first argument. On a GPU it
//! records a dispatch. On the CPU it computes at once. No op knows a model family.
//!
//! Four files hold no kernel of their own: `uniform` describes the uniform blocks, `math` and `walk` hold code that several CPU
//! twins share, and `pieces` holds a large matrix in several tensors. `tier` opens a device and decides which kernels it uses.

// `uniform` comes first, because the modules after it use its macro.
#[macro_use]
pub mod uniform;

pub mod activate;
pub mod add;
pub mod attention;
pub mod cholesky;
pub mod clip;
pub mod columns;
pub(crate) mod cooperative;
pub mod dequantize;
pub mod descent;
pub mod embedding;
pub mod fit;
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
pub mod snap;
pub mod softcap;
pub mod solve;
pub mod tier;
mod walk;
pub mod widen;

/// The positions of the tokens of a matrix `[tokens, width]`. The tokens form sequences of `seq_len` tokens, and the first
/// token of each sequence has position `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Number of earlier tokens of each sequence, whose keys and values are in a cache. It is 0 for whole sequences.
    pub first: usize,
    /// Number of tokens per sequence in the matrix.
    pub seq_len: usize,
}

impl Positions {
    /// The positions of whole sequences of `seq_len` tokens, which start at position 0.
    pub fn whole(seq_len: usize) -> Self {
        Self { first: 0, seq_len }
    }

    /// The position after the last token of each sequence.
    pub fn end(&self) -> usize {
        self.first + self.seq_len
    }
}

/// Spreads `count` workgroups over two axes, because WebGPU allows at most 65535 along one axis. Returns `[x, y, 1]` with
/// `x·y ≥ count`. The shader is given `x` and ignores indices from `count` on. A small `x` keeps their number low.
pub(crate) fn spread(count: usize) -> [usize; 3] {
    let x = count.clamp(1, 4096);
    [x, count.div_ceil(x), 1]
}

/// Spreads one invocation per element over workgroups of 256 invocations, like [`spread`]. Returns the numbers of workgroups, and
/// the number of invocations along x.
pub(crate) fn spread_elements(count: usize) -> ([usize; 3], u32) {
    let workgroups = spread(count.div_ceil(256));
    (workgroups, (workgroups[0] * 256) as u32)
}

/// Clamps `x` to the range from `low` to `high`; `low ≤ high`. In a vectorised loop this takes two instructions, which
/// `f32::clamp` does not.
#[inline(always)]
pub(crate) fn bounded(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Converts a code, an integer from 0 to 255 in f32, to `u32`. In a vectorised loop this takes one addition and one mask. The
/// operator `as` would also saturate.
#[inline(always)]
pub(crate) fn code(level: f32) -> u32 {
    (level + 8_388_608.0).to_bits() & 0xff
}
