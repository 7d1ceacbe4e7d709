//! The types in which a GGUF file stores the elements of a tensor: sizes of blocks, and the grid that each type has.
//!
//! A row of a tensor is a sequence of blocks. A block is a fixed number of weights in a fixed number of bytes. `blocks`
//! and `k_blocks` pack and unpack them.

use std::fmt;

/// The values of the codes of [`BlockType::Iq4Nl`], in the order of the codes and ascending.
pub const IQ4_NL_VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// The values of the codes of [`BlockType::Mxfp4`], in the order of the codes: a sign bit, two bits of exponent and one of
/// mantissa. They are not ascending, and the codes 0 and 8 both mean zero.
///
/// As in llama.cpp, these are twice the values of the standard (0, 0.5, 1 … 6), and the scale s = 2^(e − 128) is half of
/// the standard's for the stored exponent e. The products are the same.
pub const MXFP4_VALUES: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// The type of the elements of a tensor. Types without a grid hold plain floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// Floats of 16 bits with the exponent of f32.
    Bf16,
    /// w = s·(q − 128), 8 bits. The file holds q − 128 as a signed byte.
    Q8_0,
    /// w = s·(q − 8), 4 bits.
    Q4_0,
    /// w = s·q + o, 4 bits.
    Q4_1,
    /// w = s·(q − 16), 5 bits.
    Q5_0,
    /// w = s·q + o, 5 bits.
    Q5_1,
    /// w = s·(q − 1), 2 bits, in groups of 64. llama.cpp knows it since July 2026.
    Q2_0,
    /// w = s·[`IQ4_NL_VALUES`]\[q\].
    Iq4Nl,
    /// w = s·[`MXFP4_VALUES`]\[q\], where s is a power of two.
    Mxfp4,
    /// w = d·sc·q − dmin·mn, 2 bits, with sc and mn of 4 bits per 16 weights.
    Q2K,
    /// w = d·sc·(q − 4), 3 bits, with a signed sc of 6 bits per 16 weights.
    Q3K,
    /// w = d·sc·q − dmin·mn, 4 bits, with sc and mn of 6 bits per 32 weights.
    Q4K,
    /// w = d·sc·q − dmin·mn, 5 bits, with sc and mn of 6 bits per 32 weights.
    Q5K,
    /// w = d·sc·(q − 32), 6 bits, with a signed sc of 8 bits per 16 weights.
    Q6K,
}

/// What the codes of a type mean: w = s·(q − z), w = s·q + o or w = s·table\[q\], with a scale s per group of weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockGrid {
    /// Consecutive weights of a row that share a scale.
    pub group_size: usize,
    /// Number of codes. A code q is below it.
    pub codes: usize,
    /// Where zero lies.
    pub zero: Zero,
    /// How a scale is stored. An offset is stored in the same way; if scales are small numbers, offsets are unsigned
    /// small numbers of as many bits with a unit of their own, and o is the negative product.
    pub scale: ScaleStorage,
}

/// How a code becomes a multiple of the scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Zero {
    /// w = s·(q − z), with this z for all groups.
    Code(u8),
    /// w = s·q + o, with an offset o per group.
    Offset,
    /// w = s·table\[q\]: the values in the order of the codes.
    Table(&'static [f32; 16]),
}

/// How the scale of a group is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleStorage {
    /// As an f16 of either sign.
    F16,
    /// As a power of two from 2^−128 to 2^126.
    PowerOfTwo,
    /// As a small whole number times a unit, an f16 that consecutive groups share.
    Small {
        /// Bits of the number.
        bits: u32,
        /// Whether it is signed: from −2^(bits−1) to 2^(bits−1) − 1. Otherwise it is from 0 to 2^bits − 1.
        signed: bool,
        /// Groups that share a unit.
        groups: usize,
    },
}

/// A row of the table of types.
struct Row {
    /// The name in llama.cpp's sources and in gguf-py.
    name: &'static str,
    /// The number in a file.
    id: u32,
    /// Weights of a block.
    weights: usize,
    /// Bytes of a block.
    bytes: usize,
    /// What its codes mean. `None` for plain floats.
    grid: Option<BlockGrid>,
}

/// A row of plain floats.
const fn plain(name: &'static str, id: u32, bytes: usize) -> Row {
    Row { name, id, weights: 1, bytes, grid: None }
}

/// A row of a type whose block is one group.
const fn single(name: &'static str, id: u32, [weights, bytes]: [usize; 2], bits: u32, zero: Zero) -> Row {
    let grid = BlockGrid { group_size: weights, codes: 1 << bits, zero, scale: ScaleStorage::F16 };
    Row { name, id, weights, bytes, grid: Some(grid) }
}

/// A row of a type whose blocks of 256 weights share a unit.
const fn shared(name: &'static str, id: u32, bytes: usize, codes: (u32, Zero), scale: (u32, usize)) -> Row {
    let ((code_bits, zero), (bits, groups)) = (codes, scale);
    let scale = ScaleStorage::Small { bits, signed: !matches!(zero, Zero::Offset), groups };
    let grid = BlockGrid { group_size: K_BLOCK / groups, codes: 1 << code_bits, zero, scale };
    Row { name, id, weights: K_BLOCK, bytes, grid: Some(grid) }
}

/// Weights of a block of the K types, whose groups share a unit.
pub const K_BLOCK: usize = 256;

impl BlockType {
    /// All types.
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2_0,
        Self::Iq4Nl,
        Self::Mxfp4,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The table.
    const fn row(self) -> Row {
        match self {
            Self::F32 => plain("F32", 0, 4),
            Self::F16 => plain("F16", 1, 2),
            Self::Bf16 => plain("BF16", 30, 2),
            Self::Q8_0 => single("Q8_0", 8, [32, 34], 8, Zero::Code(128)),
            Self::Q4_0 => single("Q4_0", 2, [32, 18], 4, Zero::Code(8)),
            Self::Q4_1 => single("Q4_1", 3, [32, 20], 4, Zero::Offset),
            Self::Q5_0 => single("Q5_0", 6, [32, 22], 5, Zero::Code(16)),
            Self::Q5_1 => single("Q5_1", 7, [32, 24], 5, Zero::Offset),
            Self::Q2_0 => single("Q2_0", 42, [64, 18], 2, Zero::Code(1)),
            Self::Iq4Nl => single("IQ4_NL", 20, [32, 18], 4, Zero::Table(&IQ4_NL_VALUES)),
            Self::Mxfp4 => {
                let zero = Zero::Table(&MXFP4_VALUES);
                let grid = BlockGrid { group_size: 32, codes: 16, zero, scale: ScaleStorage::PowerOfTwo };
                Row { name: "MXFP4", id: 39, weights: 32, bytes: 17, grid: Some(grid) }
            }
            Self::Q2K => shared("Q2_K", 10, 84, (2, Zero::Offset), (4, 16)),
            Self::Q3K => shared("Q3_K", 11, 110, (3, Zero::Code(4)), (6, 16)),
            Self::Q4K => shared("Q4_K", 12, 144, (4, Zero::Offset), (6, 8)),
            Self::Q5K => shared("Q5_K", 13, 176, (5, Zero::Offset), (6, 8)),
            Self::Q6K => shared("Q6_K", 14, 210, (6, Zero::Code(32)), (8, 16)),
        }
    }

    /// The type called `name`, such as "Q4_K", if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|block_type| block_type.name() == name)
    }

    /// The type with the number `id` in a file, if this crate knows it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|block_type| block_type.id() == id)
    }

    /// The name that llama.cpp uses, such as "Q4_K".
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The number of the type in a file.
    pub fn id(self) -> u32 {
        self.row().id
    }

    /// Weights of a block. The width of a row must be a multiple of it.
    pub fn block_weights(self) -> usize {
        self.row().weights
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().bytes
    }

    /// Bits that a weight takes, including its share of scales.
    pub fn bits_per_weight(self) -> f64 {
        (8 * self.block_bytes()) as f64 / self.block_weights() as f64
    }

    /// What the codes mean. `None` for plain floats.
    pub fn grid(self) -> Option<BlockGrid> {
        self.row().grid
    }

    /// Bytes of a tensor of this shape, outermost dimension first. A shape without dimensions has one element. `None` if
    /// the last dimension is not a whole number of blocks or the size does not fit into 64 bits.
    pub fn bytes_of(self, shape: &[usize]) -> Option<u64> {
        let (&width, outer) = shape.split_last().unwrap_or((&1, &[]));
        let blocks = width.is_multiple_of(self.block_weights()).then_some(width / self.block_weights())?;
        let row = (blocks as u64).checked_mul(self.block_bytes() as u64)?;
        outer.iter().try_fold(row, |product, &size| product.checked_mul(size as u64))
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
