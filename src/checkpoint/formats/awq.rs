//! The `gemm` format of AutoAWQ, which vLLM, transformers and mlx-lm read (formats.md, section c).
//!
//! It has 4 bits per code and a zero point per group. Any 4-bit grid can be stored, whatever method found the codes.

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{codes_of, group_size_that_divides, vllm};
use crate::checkpoint::floats::transpose;
use crate::checkpoint::format::{Format, GridWish, Part, PlannedLayer, PlannedModel};
use crate::checkpoint::layout::{Layout, Lookup, Opened, Origin, PackedLayers, PackedWeight, PartData, module_of};
use crate::error::{Setting, phrase};
use crate::family::LinearSpec;
use crate::family::config::fields::Fields;
use crate::ops::grid::{GridSpec, ScaleType};
use crate::stored::{Form, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// Stores packed 4-bit codes, scales and zero points.
#[derive(Debug)]
pub struct Awq;

/// The layout of the layers that this format writes.
pub static LAYOUT: Layout = Layout { name: "AWQ", origin: Origin::Quantization, open };

/// Outputs whose codes share a word.
const PER_WORD: usize = 8;

/// For each 4 bits of a word from the lowest on, the output of the eight whose code they hold.
const ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Format for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn summary(&self) -> &'static str {
        "AWQ's 4-bit layout, for vLLM, transformers and mlx-lm"
    }

    fn stores(&self, form: Form) -> bool {
        form == Form::Codes
    }

    fn grid(&self, linear: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        if wish.bits != 4 {
            let remedy = phrase!["choose 4, or another ", Setting::Format];
            return Err(Error::input(Setting::Bits, wish.bits.to_string(), "4, as the AWQ format has it", remedy));
        }
        if !linear.rows.is_multiple_of(PER_WORD) {
            let found = format!("{} outputs", linear.rows);
            let remedy = phrase!["choose ", Setting::Format.set_to("compressed-tensors"), " or float"];
            return Err(Error::input(&linear.name, found, "a multiple of 8, as the AWQ format stores codes", remedy));
        }
        group_size_that_divides(linear, wish, "AWQ")?;
        Ok(wish.with_zeros(ScaleType::F16))
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        let LinearSpec { ref name, rows, columns, .. } = layer.spec;
        parts(name, [rows, columns], columns / layer.grid.group_size)
    }

    fn pack(&self, _: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Ok(pack(codes_of(linear)?))
    }

    fn describe(&self, model: &PlannedModel, config: &mut Map<String, Value>) -> Vec<(String, Value)> {
        let kept = model.linears.iter().chain([&model.head]).filter(|linear| model.bits_of(&linear.name).is_none());
        let kept: Vec<&str> = kept.map(|linear| linear.name.as_str()).collect();
        let description = json!({
            "quant_method": "awq",
            "bits": 4,
            "group_size": model.settings.group_size.map_or(-1, |size| size as i64),
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": kept,
        });
        config.insert("quantization_config".to_owned(), description);
        Vec::new()
    }

    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        vllm::unequal_layers(model).into_iter().collect()
    }
}

/// The tensors of the layer `module` with a weight of `[rows, columns]`, in the order in which they are written.
fn parts(module: &str, [rows, columns]: [usize; 2], groups: usize) -> Vec<Part> {
    let part = |suffix, dtype, shape| Part { name: format!("{module}.{suffix}"), dtype, shape };
    let words = rows / PER_WORD;
    vec![
        part("qweight", Dtype::I32, vec![columns, words]),
        part("qzeros", Dtype::I32, vec![groups, words]),
        part("scales", Dtype::F16, vec![groups, rows]),
    ]
}

/// The contents of the tensors of [`parts`], little-endian.
fn pack(linear: &QuantizedLinear) -> Vec<Vec<u8>> {
    let groups = linear.groups();
    let scales = transpose(&linear.half_scales(), [linear.rows, groups]);
    vec![
        pack_columns(&linear.codes, linear.columns),
        pack_columns(&linear.zero_points(), groups),
        scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
    ]
}

/// Packs a matrix of 4-bit numbers, `[rows, columns]`, column by column: eight rows in each word.
fn pack_columns(values: &[u8], columns: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / 2);
    for column in 0..columns {
        for eight in values.chunks_exact(PER_WORD * columns) {
            let nibble = |(place, output): (usize, &usize)| u32::from(eight[output * columns + column]) << (4 * place);
            let word: u32 = ORDER.iter().enumerate().map(nibble).sum();
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

/// The code or zero point of output `row` in `words`, the words of one input or of one group.
fn nibble(words: &[u32], row: usize) -> u8 {
    const PLACES: [usize; PER_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];
    (words[row / PER_WORD] >> (4 * PLACES[row % PER_WORD]) & 15) as u8
}

/// The packed layers of one checkpoint.
#[derive(Debug, PartialEq, Eq)]
struct AwqLayers {
    /// Inputs per group; `None` means one group per output row.
    group_size: Option<usize>,
}

fn open(description: &Map<String, Value>, subject: &str) -> Opened {
    let fields = Fields::new(subject, description);
    if fields.text("quant_method")? != Some("awq") {
        return Ok(None);
    }
    let bits = if fields.get("bits").is_some() { "bits" } else { "w_bit" };
    if fields.required_count(bits)? != 4 {
        return Err(fields.refuse(bits, "4"));
    }
    if fields.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
        return Err(fields.refuse("version", "\"gemm\""));
    }
    if fields.flag("zero_point")? == Some(false) {
        return Err(fields.refuse("zero_point", "true"));
    }
    let key = if fields.get("group_size").is_some() { "group_size" } else { "q_group_size" };
    let group_size = match fields.get(key).and_then(Value::as_i64) {
        Some(-1) => None,
        _ => Some(fields.required_count(key)?),
    };
    Ok(Some(Box::new(AwqLayers { group_size })))
}

impl PackedLayers for AwqLayers {
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>> {
        let [rows, columns] = *shape else { return None };
        let module = name.strip_suffix(".weight")?;
        let packed = stored(name).is_none() && stored(&format!("{module}.qweight")).is_some();
        let groups = columns.div_ceil(self.group_size.unwrap_or(columns));
        packed.then(|| parts(module, [rows, columns], groups))
    }

    fn unpack(&self, layer: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let [rows, columns] = layer.shape;
        let [PartData::Words(codes), PartData::Words(zeros), PartData::Floats(scales)] = &layer.parts[..] else {
            return Err(Error::shape("awq::unpack", format!("{}: not its tensors", module_of(layer.name))));
        };
        let group_size = self.group_size.unwrap_or(columns);
        let words = rows / PER_WORD;
        let mut weight = Vec::with_capacity(layer.rows.len() * columns);
        for row in layer.rows.clone() {
            weight.extend((0..columns).map(|column| {
                let group = column / group_size;
                let code = nibble(&codes[column * words..][..words], row);
                let zero = nibble(&zeros[group * words..][..words], row);
                scales[group * rows + row] * (f32::from(code) - f32::from(zero))
            }));
        }
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_orders_are_inverse() {
        let words: Vec<u32> = ORDER.iter().enumerate().map(|(place, &output)| (output as u32) << (4 * place)).collect();
        let word = [words.iter().sum::<u32>()];
        assert!((0..PER_WORD).all(|row| usize::from(nibble(&word, row)) == row));
    }
}
