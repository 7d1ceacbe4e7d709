//! The GPTQ layout of one linear layer, and the configuration that goes with it (formats.md, a).
//!
//! Written as v1 when symmetric and as v2 when not: v1 stores z − 1, which loaders decode differently where z = 0.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::bits;
use crate::error::{Setting, phrase};
use crate::family::{LinearSpec, ZeroPointFormat};
use crate::stored::QuantizedLinear;
use crate::{Error, Result};

impl QuantizedLinear {
    /// Where the parts lie when written.
    pub fn layout(&self) -> PackedLayout {
        let zero_points = if self.symmetric { ZeroPointFormat::V1 } else { ZeroPointFormat::V2 };
        let Self { rows, columns, bits, group_size, .. } = *self;
        PackedLayout { rows, columns, bits, group_size, zero_points }
    }

    /// The content of `qweight`, `qzeros`, `scales` and `g_idx`, little-endian, in the order of [`PackedLayout::parts`].
    ///
    /// Errors: `Error::Input` if the format cannot store this shape; `Error::Shape` if the parts do not fit together, a code or
    /// zero point needs more than `bits`, or a symmetric layer has another zero point than 2^(bits−1).
    pub fn pack(&self) -> Result<[Vec<u8>; 4]> {
        storable(&self.name, self.rows, self.columns, self.bits, self.group_size)?;
        self.check_parts()?;
        let g_idx: Vec<u32> = (0..self.columns).map(|k| (k / self.group_size) as u32).collect();
        let scales = transposed(&self.scales, self.groups());
        Ok([
            little_endian(&self.pack_codes()),
            little_endian(&self.pack_zeros()),
            scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
            little_endian(&g_idx),
        ])
    }

    /// Whether the parts have the sizes and ranges that the fields promise.
    pub(super) fn check_parts(&self) -> Result<()> {
        let limit = (1u16 << self.bits) - 1;
        let cells = self.rows * self.groups();
        let sizes = (self.codes.len(), self.scales.len(), self.zeros.len());
        let fits = |values: &[u8]| values.iter().all(|&v| u16::from(v) <= limit);
        let problem = if sizes != (self.rows * self.columns, cells, cells) {
            format!("{} × {} in groups of {}, but {sizes:?} parts", self.rows, self.columns, self.group_size)
        } else if !fits(&self.codes) || !fits(&self.zeros) {
            format!("a code or zero point of more than {} bits", self.bits)
        } else if self.symmetric && self.zeros.iter().any(|&z| u16::from(z) != limit / 2 + 1) {
            format!("a symmetric layer whose zero point is not {}", limit / 2 + 1)
        } else if !self.scales.iter().all(|s| s.is_finite()) {
            let remedy = phrase!["use a smaller ", Setting::RoundingDamping, " or more samples"];
            return Err(Error::NotFinite { place: format!("scales of {}", self.name), remedy });
        } else {
            return Ok(());
        };
        Err(Error::shape("gptq::pack", format!("{}: {problem}", self.name)))
    }

    /// `[columns·bits/32, rows]`: column n is the bit string of row n.
    fn pack_codes(&self) -> Vec<u32> {
        let mut words = vec![0; self.codes.len() * self.bits as usize / 32];
        for (row, codes) in self.codes.chunks_exact(self.columns).enumerate() {
            for (index, word) in bits::pack(codes, self.bits).into_iter().enumerate() {
                words[index * self.rows + row] = word;
            }
        }
        words
    }

    /// `[groups, rows·bits/32]`: row g is the bit string of the zero points of group g.
    fn pack_zeros(&self) -> Vec<u32> {
        let stored_below = u8::from(self.symmetric);
        let zeros: Vec<u8> = transposed(&self.zeros, self.groups()).into_iter().map(|z| z - stored_below).collect();
        zeros.chunks_exact(self.rows).flat_map(|group| bits::pack(group, self.bits)).collect()
    }
}

/// Whether the GPTQ format can store a layer of `rows` outputs and `columns` inputs at these settings.
///
/// Clients need whole 32-bit words along both sides and groups that divide the inputs (formats.md, fact 8).
pub fn storable(module: &str, rows: usize, columns: usize, bits: u32, group_size: usize) -> Result<()> {
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err(Error::input(Setting::Bits, bits.to_string(), "2, 3, 4 or 8", "choose one of these"));
    }
    for (side, count) in [("inputs", columns), ("outputs", rows)] {
        if !(count * bits as usize).is_multiple_of(32) {
            return Err(Error::input(
                module,
                format!("{count} {side} at {bits} bits"),
                "whole 32-bit words, as the GPTQ format stores codes",
                phrase!["choose other ", Setting::Bits, ", or ", Setting::Format.set_to("float")],
            ));
        }
    }
    if group_size == 0 || !columns.is_multiple_of(group_size) {
        let fitting = [128, 64, 32].into_iter().find(|&g| columns.is_multiple_of(g));
        let fitting = fitting.map_or("-1".to_owned(), |g| g.to_string());
        return Err(Error::input(
            Setting::GroupSize,
            format!("{group_size} for the {columns} inputs of {module}"),
            "a group size that divides them, as the GPTQ format demands",
            phrase!["choose ", Setting::GroupSize.set_to(fitting)],
        ));
    }
    Ok(())
}

/// One tensor of a packed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedPart {
    /// What follows the module path, such as `qweight`.
    pub suffix: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// Shapes of the four tensors of a packed layer, and how to read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedLayout {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; equal to `columns` for one group per row.
    pub group_size: usize,
    /// How zero points are stored.
    pub zero_points: ZeroPointFormat,
}

/// The four tensors of a packed layer as read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedTensors {
    /// `[columns·bits/32, rows]`.
    pub qweight: Vec<u32>,
    /// `[groups, rows·bits/32]`.
    pub qzeros: Vec<u32>,
    /// `[groups, rows]`.
    pub scales: Vec<f32>,
    /// `[columns]`.
    pub g_idx: Vec<u32>,
}

impl PackedLayout {
    /// `qweight`, `qzeros`, `scales`, `g_idx`, in the order in which they are written.
    pub fn parts(&self) -> [PackedPart; 4] {
        let groups = self.columns.div_ceil(self.group_size);
        let words = |n: usize| (n * self.bits as usize).div_ceil(32);
        let part = |suffix, dtype, shape| PackedPart { suffix, dtype, shape };
        [
            part("qweight", Dtype::I32, vec![words(self.columns), self.rows]),
            part("qzeros", Dtype::I32, vec![groups, words(self.rows)]),
            part("scales", Dtype::F16, vec![groups, self.rows]),
            part("g_idx", Dtype::I32, vec![self.columns]),
        ]
    }

    /// z as `[groups, rows]`.
    ///
    /// In v1 the one that was subtracted is added back to whole words, with carries, because that is how the writers that use
    /// v1 for z = 0 subtracted it; where z ≥ 1 it is the same as adding it to each field.
    pub fn unpack_zeros(&self, qzeros: &[u32]) -> Vec<u8> {
        let mask = ((1u16 << self.bits) - 1) as u8;
        let stride = (self.rows * self.bits as usize).div_ceil(32);
        let ones = bits::pack(&vec![1; 32 / self.bits as usize], self.bits)[0];
        let unpack = |words: &[u32]| match (self.zero_points, self.bits) {
            (ZeroPointFormat::V2, _) => bits::unpack(words, self.bits, self.rows),
            (ZeroPointFormat::V1, 3) => {
                bits::unpack(words, 3, self.rows).into_iter().map(|z| z.wrapping_add(1) & mask).collect()
            }
            (ZeroPointFormat::V1, _) => {
                let words: Vec<u32> = words.iter().map(|word| word.wrapping_add(ones)).collect();
                bits::unpack(&words, self.bits, self.rows)
            }
        };
        qzeros.chunks_exact(stride).flat_map(unpack).collect()
    }

    /// s·(q − z) as `[rows, columns]`, or `None` if `g_idx` names a group that is not there.
    pub fn dequantize(&self, tensors: &PackedTensors) -> Option<Vec<f32>> {
        let groups = self.columns.div_ceil(self.group_size);
        let group_of: Vec<usize> = tensors.g_idx.iter().map(|&g| g as usize).collect();
        if group_of.iter().any(|&group| group >= groups) {
            return None;
        }
        let zeros = self.unpack_zeros(&tensors.qzeros);
        let mut weight = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            let words: Vec<u32> = tensors.qweight[row..].iter().step_by(self.rows).copied().collect();
            let codes = bits::unpack(&words, self.bits, self.columns);
            weight.extend(codes.iter().zip(&group_of).map(|(&q, group)| {
                let cell = group * self.rows + row;
                tensors.scales[cell] * (f32::from(q) - f32::from(zeros[cell]))
            }));
        }
        Some(weight)
    }
}

/// What a GPTQ checkpoint says about how it was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqSettings {
    /// Bits per code where a layer has none of its own: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; `None` is one group per output row.
    pub group_size: Option<usize>,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// Damping of the rounding. Left out of the file where it is not between 0 and 1, which clients refuse.
    pub damping: f64,
}

impl GptqSettings {
    /// How `linear` is stored with codes of `bits` bits; errors if the format cannot.
    pub fn layout(&self, linear: &LinearSpec, bits: u32) -> Result<PackedLayout> {
        let LinearSpec { ref name, rows, columns, .. } = *linear;
        let group_size = self.group_size.unwrap_or(columns);
        storable(name, rows, columns, bits, group_size)?;
        Ok(PackedLayout { rows, columns, bits, group_size, zero_points: self.zero_points() })
    }

    fn zero_points(&self) -> ZeroPointFormat {
        if self.symmetric { ZeroPointFormat::V1 } else { ZeroPointFormat::V2 }
    }

    /// The object for `quantization_config` in config.json and for quantize_config.json.
    pub fn to_json(&self) -> Value {
        let format = self.zero_points();
        let group_size = self.group_size.map_or(-1, |size| size as i64);
        let mut config = json!({
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": group_size,
            "desc_act": false,
            "sym": self.symmetric,
            "lm_head": false,
            "checkpoint_format": format.label(),
            "format": format.label(),
            "pack_dtype": "int32",
            "true_sequential": true,
        });
        if self.damping > 0.0 && self.damping < 1.0 {
            config["damp_percent"] = json!(self.damping);
        }
        config["meta"] = json!({ "quantizer": [concat!("aquatint:", env!("CARGO_PKG_VERSION"))] });
        config
    }
}

fn little_endian(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A row-major `[n, columns]` matrix as `[columns, n]`.
fn transposed<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}
