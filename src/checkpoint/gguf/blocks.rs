//! Packs quantized layers into blocks, and unpacks blocks into numbers.
//!
//! `types` says what the codes of each type mean, `fields` where they lie. The scales of the K types are in `k_blocks`.

use half::{bf16, f16};

use super::fields::{self, Fields};
use super::k_blocks;
use super::types::{BlockGrid, BlockType, ScaleStorage, Zero};
use crate::{Error, Result};

/// The name of the operation in messages.
const PACK: &str = "gguf::pack";

/// A quantized layer on the grid of a type, row-major. A row has columns / group size groups, by the group size of the
/// type's [`BlockGrid`].
#[derive(Debug, Clone, Copy)]
pub struct BlockCodes<'a> {
    /// Codes q, `[rows, columns]`, below the number of codes of the type.
    pub codes: &'a [u8],
    /// Scales s, `[rows, groups]`. They are finite f16 values of either sign, powers of two from 2^−128 to 2^126 for
    /// MXFP4, or the products of a unit and a small whole number for the K types.
    pub scales: &'a [f32],
    /// Offsets o, `[rows, groups]`, of the types whose zero is an offset; else empty. They are finite f16 values, or for
    /// the K types the negative products of an offset unit and a small whole number.
    pub offsets: &'a [f32],
    /// Units d of the scales, `[rows, columns/256]`, of the K types; else empty. They are finite f16 values.
    pub units: &'a [f32],
    /// Units dmin of the offsets, `[rows, columns/256]`, of the K types with offsets; else empty. They are finite f16
    /// values.
    pub offset_units: &'a [f32],
}

/// Packs a layer of this shape, `[rows, columns]`, into the blocks of a type, row after row.
///
/// Errors: `Error::Shape` if the type holds plain floats, if columns are not a whole number of blocks, if a slice has
/// another length than the shape demands, or if a code, a scale, an offset or a unit cannot be stored exactly.
pub fn pack(block_type: BlockType, shape: [usize; 2], layer: &BlockCodes<'_>) -> Result<Vec<u8>> {
    let (Some(grid), Some(fields)) = (block_type.grid(), Fields::of(block_type)) else {
        return Err(Error::shape(PACK, format!("codes for {block_type}, which has none")));
    };
    check_lengths(block_type, shape, &grid, layer)?;
    let (weights, size) = (block_type.block_weights(), block_type.block_bytes());
    let groups = weights / grid.group_size;
    let mut bytes = vec![0; shape[0] * (shape[1] / weights) * size];
    for (index, block) in bytes.chunks_exact_mut(size).enumerate() {
        let (first, group) = (index * weights, index * groups);
        let codes = &layer.codes[first..first + weights];
        if let Some(code) = codes.iter().find(|&&code| usize::from(code) >= grid.codes) {
            return Err(Error::shape(PACK, format!("code {code} in {block_type}, which has {} codes", grid.codes)));
        }
        fields::put(fields.codes, codes, block);
        let offsets = if layer.offsets.is_empty() { &[] } else { &layer.offsets[group..group + groups] };
        let values = [&layer.scales[group..group + groups], offsets];
        let units = [layer.units.get(index).copied(), layer.offset_units.get(index).copied()];
        let stored = match &fields.small {
            None => put_scale(&grid, fields.scale, values, block),
            Some(small) => k_blocks::put_numbers(&grid, small, values, units, block)
                .and_then(|()| put_floats(fields.scale, units, block)),
        };
        stored.ok_or_else(|| {
            let detail = format!("scales and offsets {values:?} with units {units:?} cannot be stored as {block_type}");
            Error::shape(PACK, detail)
        })?;
    }
    Ok(bytes)
}

/// Checks the lengths of all slices against the shape of the layer.
fn check_lengths(
    block_type: BlockType,
    [rows, columns]: [usize; 2],
    grid: &BlockGrid,
    layer: &BlockCodes<'_>,
) -> Result<()> {
    let offset = grid.zero == Zero::Offset;
    let small = matches!(grid.scale, ScaleStorage::Small { .. });
    let groups = rows * (columns / grid.group_size);
    let units = rows * (columns / block_type.block_weights());
    let when = |present: bool, count: usize| if present { count } else { 0 };
    let expected = [rows * columns, groups, when(offset, groups), when(small, units), when(small && offset, units)];
    let BlockCodes { codes, scales, offsets, units, offset_units } = layer;
    let found = [codes.len(), scales.len(), offsets.len(), units.len(), offset_units.len()];
    if found == expected && columns.is_multiple_of(block_type.block_weights()) {
        return Ok(());
    }
    let detail = format!("{found:?} codes, scales, offsets and units for {block_type} of shape [{rows}, {columns}]");
    Err(Error::shape(PACK, detail))
}

/// Stores the scale and the offset of a block of one group. `None` if one cannot be stored exactly.
fn put_scale(grid: &BlockGrid, at: usize, [scales, offsets]: [&[f32]; 2], block: &mut [u8]) -> Option<()> {
    match grid.scale {
        ScaleStorage::PowerOfTwo => {
            block[at] = exponent_of(scales[0])?;
            Some(())
        }
        _ => put_floats(at, [scales.first().copied(), offsets.first().copied()], block),
    }
}

/// Stores those floats that are there as f16, one after the other from the byte `at` on. `None` if one is not finite or
/// has more digits than f16.
fn put_floats(at: usize, values: [Option<f32>; 2], block: &mut [u8]) -> Option<()> {
    for (value, bytes) in values.into_iter().flatten().zip(block[at..].chunks_exact_mut(2)) {
        let stored = f16::from_f32(value);
        if !stored.is_finite() || stored.to_f32() != value {
            return None;
        }
        bytes.copy_from_slice(&stored.to_le_bytes());
    }
    Some(())
}

/// The exponent e for the scale 2^(e − 128) of MXFP4. `None` if the scale is no such power of two. The exponent 255 is
/// not used, because it means NaN in the standard of the format.
fn exponent_of(scale: f32) -> Option<u8> {
    let exponent = scale.log2().round() + 128.0;
    let exponent = (0.0..255.0).contains(&exponent).then_some(exponent as u8)?;
    (power_of_two(exponent) == scale).then_some(exponent)
}

/// The scale 2^(e − 128) of MXFP4, which is exact in f32 for all exponents.
fn power_of_two(exponent: u8) -> f32 {
    2f64.powi(i32::from(exponent) - 128) as f32
}

/// Unpacks whole blocks of a type into numbers, with the arithmetic of ggml's `dequantize_row_*` in f32. The result may
/// hold NaN or infinities if the file does.
///
/// Errors: `Error::Shape` if `bytes` is not a whole number of blocks.
pub fn unpack(block_type: BlockType, bytes: &[u8]) -> Result<Vec<f32>> {
    let size = block_type.block_bytes();
    if !bytes.len().is_multiple_of(size) {
        let detail = format!("{} bytes of {block_type}, whose blocks have {size}", bytes.len());
        return Err(Error::shape("gguf::unpack", detail));
    }
    let (Some(grid), Some(fields)) = (block_type.grid(), Fields::of(block_type)) else {
        return Ok(unpack_floats(block_type, bytes));
    };
    let weights = block_type.block_weights();
    let mut codes = vec![0; weights];
    let mut values = Vec::with_capacity(bytes.len() / size * weights);
    for block in bytes.chunks_exact(size) {
        fields::take(fields.codes, block, &mut codes);
        let floats = [0, 2].map(|behind| float_at(block, fields.scale + behind));
        let [scales, offsets] = match (&fields.small, grid.scale) {
            (Some(small), _) => k_blocks::take_numbers(&grid, small, floats, block),
            (None, ScaleStorage::PowerOfTwo) => [power_of_two(block[fields.scale]), 0.0].map(k_blocks::for_all),
            (None, _) => floats.map(k_blocks::for_all),
        };
        for (group, codes) in codes.chunks_exact(grid.group_size).enumerate() {
            let (scale, offset) = (scales[group], offsets[group]);
            match grid.zero {
                Zero::Code(zero) => {
                    values.extend(codes.iter().map(|&code| scale * f32::from(i16::from(code) - i16::from(zero))));
                }
                Zero::Offset => values.extend(codes.iter().map(|&code| scale * f32::from(code) + offset)),
                Zero::Table(table) => values.extend(codes.iter().map(|&code| scale * table[usize::from(code)])),
            }
        }
    }
    Ok(values)
}

/// The f16 at the byte `at` of a block. Blocks whose scale ends them have no second float; its place reads as zero.
fn float_at(block: &[u8], at: usize) -> f32 {
    block.get(at..at + 2).map_or(0.0, |bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
}

/// Unpacks plain floats.
fn unpack_floats(block_type: BlockType, bytes: &[u8]) -> Vec<f32> {
    match block_type {
        BlockType::F16 => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        BlockType::Bf16 => bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    }
}
