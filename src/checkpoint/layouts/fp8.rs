//! FP8 weights: 8-bit floats (E4M3) with a scale for each block, for each row or for the whole weight.
//!
//! A weight `X.weight` is stored under its own name in F8_E4M3, with its scales beside it. A weight is code · scale.
//! A layer that stays as it is has a float weight and no scales, so lists of such layers need not be read.

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::checkpoint::format::Part;
use crate::checkpoint::layout::{Layout, Lookup, Opened, Origin, PackedLayers, PackedWeight, PartData, module_of};
use crate::device::recycled;
use crate::family::config::fields::Fields;
use crate::{Error, Result};

/// FP8 as transformers stores it for DeepSeek-V3, Qwen3-FP8 and Ministral 3: scales in blocks, or one per weight.
pub static FP8: Layout = Layout { name: "FP8", origin: Origin::Release, open: open_fine_grained };

/// FP8 as compressed-tensors stores it in the format `float-quantized`: scales per weight, per row or in blocks.
pub static COMPRESSED_TENSORS: Layout = Layout { name: "FP8", origin: Origin::Release, open: open_compressed_tensors };

/// Rows and columns of a block where the configuration names none, as in transformers.
const DEFAULT_BLOCK: [usize; 2] = [128, 128];

/// FP8 weights of one checkpoint.
#[derive(Debug, PartialEq, Eq)]
struct Fp8 {
    sharing: Sharing,
    /// Last part of the name of the scales of a weight.
    scales: &'static str,
    /// Last part of the name of the scale of the inputs of a layer.
    input_scale: &'static str,
}

/// The weights that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// All weights of the layer.
    Tensor,
    /// Each row.
    Row,
    /// Blocks of so many rows and columns. Blocks at the lower and at the right edge may be smaller.
    Block([usize; 2]),
}

fn open_fine_grained(description: &Map<String, Value>, subject: &str) -> Opened {
    let fields = Fields::new(subject, description);
    if fields.text("quant_method")? != Some("fp8") {
        return Ok(None);
    }
    if fields.text("fmt")?.is_some_and(|format| format != "e4m3") {
        return Err(fields.refuse("fmt", "\"e4m3\""));
    }
    let key = "weight_block_size";
    let sharing = match description.get(key) {
        None => Sharing::Block(DEFAULT_BLOCK),
        Some(Value::Null) => Sharing::Tensor,
        Some(size) => Sharing::Block(block(size).ok_or_else(|| fields.refuse(key, BLOCK_EXPECTED))?),
    };
    Ok(Some(Box::new(Fp8 { sharing, scales: "weight_scale_inv", input_scale: "activation_scale" })))
}

fn open_compressed_tensors(description: &Map<String, Value>, subject: &str) -> Opened {
    let fields = Fields::new(subject, description);
    if fields.text("quant_method")? != Some("compressed-tensors") {
        return Ok(None);
    }
    let format = fields.text("format")?.unwrap_or_default();
    if format != "float-quantized" {
        let found = format!("weights of compressed-tensors in its format \"{format}\"");
        return Err(super::unreadable(subject, &found));
    }
    let groups = fields.object("config_groups")?.ok_or_else(|| fields.refuse("config_groups", "\"config_groups\""))?;
    let mut sharings = Vec::new();
    for name in groups.object.keys() {
        let group = groups.object(name)?.ok_or_else(|| groups.refuse(name, "an object"))?;
        let weights = group.object("weights")?.ok_or_else(|| groups.refuse(name, "a group with \"weights\""))?;
        sharings.push(sharing_of(weights)?);
    }
    match sharings[..] {
        [sharing, ref others @ ..] if others.iter().all(|other| *other == sharing) => {
            Ok(Some(Box::new(Fp8 { sharing, scales: "weight_scale", input_scale: "input_scale" })))
        }
        _ => Err(fields.refuse("config_groups", "one or more groups that share their scales alike")),
    }
}

/// Reads how the weights of a group of compressed-tensors share their scales.
fn sharing_of(weights: Fields<'_>) -> Result<Sharing> {
    if weights.text("type")? != Some("float") {
        return Err(weights.refuse("type", "\"float\""));
    }
    if weights.required_count("num_bits")? != 8 {
        return Err(weights.refuse("num_bits", "8"));
    }
    match weights.text("strategy")? {
        Some("tensor") => Ok(Sharing::Tensor),
        Some("channel") => Ok(Sharing::Row),
        Some("block") => {
            let size = weights.get("block_structure").and_then(block);
            size.map(Sharing::Block).ok_or_else(|| weights.refuse("block_structure", BLOCK_EXPECTED))
        }
        _ => Err(weights.refuse("strategy", "\"tensor\", \"channel\" or \"block\"")),
    }
}

const BLOCK_EXPECTED: &str = "a list of the rows and the columns of a block";

/// Reads a list of two whole numbers above zero.
fn block(value: &Value) -> Option<[usize; 2]> {
    let extent = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    match value.as_array()?.as_slice() {
        [rows, columns] => Some([extent(rows)? as usize, extent(columns)? as usize]),
        _ => None,
    }
}

impl Sharing {
    /// The shape of the scales of a weight `[rows, columns]`.
    fn scales(self, [rows, columns]: [usize; 2]) -> Vec<usize> {
        match self {
            Self::Tensor => Vec::new(),
            Self::Row => vec![rows, 1],
            Self::Block([height, width]) => vec![rows.div_ceil(height), columns.div_ceil(width)],
        }
    }

    /// Rows and columns of the weights that share a scale, in a weight `[rows, columns]`.
    fn block(self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Tensor => [rows, columns],
            Self::Row => [1, columns],
            Self::Block(block) => block,
        }
    }
}

impl PackedLayers for Fp8 {
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>> {
        let [rows, columns] = *shape else { return None };
        let (Dtype::F8_E4M3, _) = stored(name)? else { return None };
        let weight = Part { name: name.to_owned(), dtype: Dtype::F8_E4M3, shape: shape.to_vec() };
        let scales = Part {
            name: format!("{}.{}", module_of(name), self.scales),
            dtype: Dtype::F32,
            shape: self.sharing.scales([rows, columns]),
        };
        Some(vec![weight, scales])
    }

    fn input_scales(&self, name: &str) -> Vec<String> {
        vec![format!("{}.{}", module_of(name), self.input_scale)]
    }

    fn unpack(&self, weight: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let [PartData::Bytes(codes), PartData::Floats(scales)] = &weight.parts[..] else {
            return Err(Error::shape("fp8::unpack", format!("{}: not its two tensors", weight.name)));
        };
        let (elements, columns) = (weight.elements(), weight.shape[1]);
        let mut values = recycled(elements.len());
        if values.is_empty() {
            return Ok(values);
        }
        let [height, width] = self.sharing.block(weight.shape);
        let (table, across) = (table(), columns.div_ceil(width));
        let lines = values.par_chunks_mut(columns).zip(codes[elements].par_chunks(columns));
        let finite = lines.zip(weight.rows.clone()).map(|((values, codes), row)| {
            let scales = &scales[row / height * across..][..across];
            for ((values, codes), scale) in values.chunks_mut(width).zip(codes.chunks(width)).zip(scales) {
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = table[usize::from(code)] * scale);
            }
            values.iter().all(|value| value.is_finite())
        });
        match finite.reduce(|| true, |a, b| a && b) {
            true => Ok(values),
            false => Err(weight.not_finite()),
        }
    }
}

/// The number of each code of E4M3: a sign, 4 bits of exponent with bias 7, and 3 bits of mantissa. Only the codes with
/// all other bits set are NaN, and there is no infinity.
fn table() -> [f32; 256] {
    std::array::from_fn(|code| {
        let (exponent, mantissa) = ((code >> 3 & 15) as i32, (code & 7) as f32);
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa * 2f32.powi(-9),
            _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
        };
        if code < 128 { magnitude } else { -magnitude }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn codes_are_the_numbers_that_the_type_defines() {
        let table = table();
        // From the definition of the type: the least and the greatest number, and the ends of the subnormal ones.
        let known = [(0x01, 1.0 / 512.0), (0x07, 7.0 / 512.0), (0x08, 1.0 / 64.0), (0x38, 1.0), (0x7e, 448.0)];
        for (code, value) in known {
            assert_eq!((table[code], table[code + 128]), (value, -value), "{code:#x}");
        }
        assert!(table[0x7f].is_nan() && table[0xff].is_nan());
        assert!(table[..0x7f].windows(2).all(|pair| pair[0] < pair[1]), "codes without sign are in order");
        assert!(table[0x80].is_sign_negative() && table[0x80] == 0.0);
    }

    #[test]
    fn a_description_says_how_weights_share_scales() {
        let sharing = |mut description: Value, weights: Option<Value>| {
            if let Some(weights) = weights {
                description["config_groups"] = json!({ "group_0": { "targets": ["Linear"], "weights": weights } });
            }
            let object = description.as_object().unwrap();
            let open = if object["quant_method"] == "fp8" { open_fine_grained } else { open_compressed_tensors };
            open(object, "config.json").map(|layers| format!("{:?}", layers.unwrap())).map_err(|e| e.to_string())
        };
        let fp8 = |size: Value| sharing(json!({ "quant_method": "fp8", "weight_block_size": size }), None);
        assert!(fp8(json!([64, 32])).unwrap().contains("Block([64, 32])"));
        assert!(fp8(json!(null)).unwrap().contains("Tensor"));
        assert!(sharing(json!({ "quant_method": "fp8" }), None).unwrap().contains("Block([128, 128])"));
        for bad in [json!([128]), json!([128, 0]), json!([128, -1]), json!(128), json!([1, 1u64 << 40])] {
            assert!(fp8(bad).unwrap_err().contains("weight_block_size"));
        }
        let other = sharing(json!({ "quant_method": "fp8", "fmt": "e5m2" }), None).unwrap_err();
        assert!(other.contains("\"fmt\": \"e5m2\", expected \"e4m3\""), "{other}");

        let base = json!({ "quant_method": "compressed-tensors", "format": "float-quantized" });
        let compressed = |weights: Value| sharing(base.clone(), Some(weights));
        let channel = json!({ "num_bits": 8, "type": "float", "strategy": "channel" });
        assert!(compressed(channel).unwrap().contains("Row"));
        let blocks = json!({ "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [2, 4] });
        assert!(compressed(blocks).unwrap().contains("Block([2, 4])"));
        let group = json!({ "num_bits": 8, "type": "float", "strategy": "group" });
        assert!(compressed(group).unwrap_err().contains("\"strategy\": \"group\""));
        let integers = json!({ "num_bits": 8, "type": "int", "strategy": "tensor" });
        assert!(compressed(integers).unwrap_err().contains("\"type\": \"int\""));
        assert!(sharing(base.clone(), None).unwrap_err().contains("no \"config_groups\""));
    }
}
