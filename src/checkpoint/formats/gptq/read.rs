//! Dequantizes the layers of a GPTQ checkpoint. Whatever bits a file holds, the result is numbers or an error, never a
//! panic.

use std::ops::Range;

use super::config::GptqConfig;
use super::{Layout, ZeroPoints};
use crate::checkpoint::bits;
use crate::checkpoint::format::Part;
use crate::checkpoint::layout::{Lookup, PackedLayers, PackedWeight, PartData, module_of};
use crate::{Error, Result};

impl PackedLayers for GptqConfig {
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>> {
        let [rows, columns] = *shape else { return None };
        let module = name.strip_suffix(".weight")?;
        let packed = stored(name).is_none() && stored(&format!("{module}.qweight")).is_some();
        packed.then(|| self.layer_layout(module, [rows, columns]).parts(module))
    }

    fn unpack(&self, layer: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let module = module_of(layer.name);
        let [PartData::Words(codes), PartData::Words(zeros), PartData::Floats(scales), PartData::Words(group_of)] =
            &layer.parts[..]
        else {
            return Err(Error::shape("gptq::unpack", format!("{module}: not its four tensors")));
        };
        let layout = self.layer_layout(module, layer.shape);
        let zeros = layout.unpack_zeros(zeros);
        self.check_symmetry(layer, &layout, &zeros)?;
        layout.dequantize(codes, &zeros, scales, group_of, layer.rows.clone()).ok_or_else(|| {
            Error::input(
                layer.place,
                format!("{module}.g_idx with a group that does not exist"),
                "group numbers that fit group_size in the configuration",
                "correct group_size, or download the checkpoint again",
            )
        })
    }
}

impl GptqConfig {
    /// The layout in which the weight of `module`, `[rows, columns]`, is stored.
    fn layer_layout(&self, module: &str, [rows, columns]: [usize; 2]) -> Layout {
        let group_size = self.group_size.unwrap_or(columns);
        Layout { rows, columns, bits: self.bits_of(module), group_size, zero_points: self.zero_points }
    }

    /// Checks that all zero points of a symmetric layer are 2^(bits−1). If one differs, the file is labelled with the
    /// wrong version of the format, and every weight would be off by one step.
    ///
    /// Errors: `Error::Input` naming the zero point.
    fn check_symmetry(&self, layer: &PackedWeight<'_>, layout: &Layout, zeros: &[u8]) -> Result<()> {
        let middle = 1u16 << (layout.bits - 1);
        let other = zeros.iter().find(|&&z| self.symmetric && u16::from(z) != middle);
        let Some(other) = other else { return Ok(()) };
        let counterpart = match self.zero_points {
            ZeroPoints::V1 => ZeroPoints::V2,
            ZeroPoints::V2 => ZeroPoints::V1,
        };
        Err(Error::input(
            layer.place,
            format!("zero point {other} in {}.qzeros, read as {}", module_of(layer.name), self.zero_points.label()),
            format!("{middle} throughout, since the checkpoint calls itself symmetric"),
            format!("correct sym, or set checkpoint_format to {} if that is how it was written", counterpart.label()),
        ))
    }
}

impl Layout {
    /// Unpacks `qzeros` to the zero points z, `[groups, rows]`.
    ///
    /// Version 1 stores z − 1. For 2, 4 and 8 bits, 1 per field is added back to whole words, with carries between
    /// fields. Writers that use version 1 for z = 0 subtract it in the same way. Where z ≥ 1, the result is the same as
    /// adding 1 to each field. At 3 bits, where fields straddle words, 1 is added to each field.
    fn unpack_zeros(&self, qzeros: &[u32]) -> Vec<u8> {
        let mask = ((1u16 << self.bits) - 1) as u8;
        let stride = (self.rows * self.bits as usize).div_ceil(32);
        let ones = bits::pack(&vec![1; 32 / self.bits as usize], self.bits)[0];
        let unpack = |words: &[u32]| match (self.zero_points, self.bits) {
            (ZeroPoints::V2, _) => bits::unpack(words, self.bits, self.rows),
            (ZeroPoints::V1, 3) => {
                bits::unpack(words, 3, self.rows).into_iter().map(|z| z.wrapping_add(1) & mask).collect()
            }
            (ZeroPoints::V1, _) => {
                let words: Vec<u32> = words.iter().map(|word| word.wrapping_add(ones)).collect();
                bits::unpack(&words, self.bits, self.rows)
            }
        };
        qzeros.chunks_exact(stride).flat_map(unpack).collect()
    }

    /// Dequantizes the rows `rows` to s·(q − z).
    ///
    /// `qweight` holds the packed codes, `zeros` and `scales` are `[groups, rows]`, and `g_idx` holds the group of each
    /// input. Returns `None` if `g_idx` names a group that does not exist.
    fn dequantize(
        &self,
        qweight: &[u32],
        zeros: &[u8],
        scales: &[f32],
        g_idx: &[u32],
        rows: Range<usize>,
    ) -> Option<Vec<f32>> {
        let groups = self.columns.div_ceil(self.group_size);
        let group_of: Vec<usize> = g_idx.iter().map(|&g| g as usize).collect();
        if group_of.iter().any(|&group| group >= groups) {
            return None;
        }
        let mut weight = Vec::with_capacity(rows.len() * self.columns);
        for row in rows {
            let words: Vec<u32> = qweight[row..].iter().step_by(self.rows).copied().collect();
            let codes = bits::unpack(&words, self.bits, self.columns);
            weight.extend(codes.iter().zip(&group_of).map(|(&q, group)| {
                let cell = group * self.rows + row;
                scales[cell] * (f32::from(q) - f32::from(zeros[cell]))
            }));
        }
        Some(weight)
    }
}
