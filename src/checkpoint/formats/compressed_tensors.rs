//! The `pack-quantized` format of compressed-tensors, which vLLM and transformers read (formats.md, section b).
//!
//! Codes lie densely in 32-bit words at every bit width, as in compressed-tensors 0.18 and later. vLLM takes 2 and 3 bits
//! in this format only.

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::kinds::LayerKind;
use super::{codes_of, group_size_that_divides, vllm};
use crate::checkpoint::bits;
use crate::checkpoint::format::{Format, GridWish, Part, PlannedLayer, PlannedModel};
use crate::checkpoint::layout::{Layout, Lookup, Opened, Origin, PackedLayers, PackedWeight, PartData, module_of};
use crate::family::LinearSpec;
use crate::family::config::fields::Fields;
use crate::ops::grid::{GridSpec, ScaleType};
use crate::stored::{Form, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// Stores packed codes, scales and, unless the grid is symmetric, zero points.
#[derive(Debug)]
pub struct CompressedTensors;

/// The layout of the layers that this format writes.
pub static LAYOUT: Layout = Layout { name: "compressed-tensors", origin: Origin::Quantization, open };

impl Format for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn summary(&self) -> &'static str {
        "Packed codes of compressed-tensors, for vLLM and transformers"
    }

    fn stores(&self, form: Form) -> bool {
        form == Form::Codes
    }

    fn grid(&self, linear: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        group_size_that_divides(linear, wish, "compressed-tensors")?;
        Ok(wish.with_zeros(ScaleType::F16))
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        let LinearSpec { ref name, rows, columns, .. } = layer.spec;
        let GridSpec { bits, group_size, .. } = layer.grid;
        let symmetric = layer.grid.is_symmetric();
        Shapes { rows, columns, bits, groups: columns / group_size, symmetric }.parts(name)
    }

    fn pack(&self, _: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Ok(pack(codes_of(linear)?))
    }

    fn describe(&self, model: &PlannedModel, config: &mut Map<String, Value>) -> Vec<(String, Value)> {
        config.insert("quantization_config".to_owned(), description(model));
        Vec::new()
    }

    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        let asymmetric = "transformers 5.23 loads asymmetric layers of this format with \
                          CompressedTensorsConfig(dequantize=True) only";
        let asymmetric = (!model.settings.symmetric).then(|| asymmetric.to_owned());
        vllm::unequal_layers(model).into_iter().chain(asymmetric).collect()
    }
}

/// The sizes that decide the shapes of the tensors of a layer.
#[derive(Debug, Clone, Copy)]
struct Shapes {
    rows: usize,
    columns: usize,
    bits: u32,
    /// Groups per row.
    groups: usize,
    symmetric: bool,
}

impl Shapes {
    /// The tensors of the layer `module`, in the order in which they are written.
    fn parts(&self, module: &str) -> Vec<Part> {
        let Self { rows, columns, bits, groups, symmetric } = *self;
        let words = |count: usize| (count * bits as usize).div_ceil(32);
        let part = |suffix, dtype, shape| Part { name: format!("{module}.{suffix}"), dtype, shape };
        let zeros = (!symmetric).then(|| part("weight_zero_point", Dtype::I32, vec![words(rows), groups]));
        [part("weight_packed", Dtype::I32, vec![rows, words(columns)])]
            .into_iter()
            .chain([part("weight_scale", Dtype::F16, vec![rows, groups])])
            .chain(zeros)
            .chain([part("weight_shape", Dtype::I64, vec![2])])
            .collect()
    }
}

/// The contents of the tensors of [`Shapes::parts`], little-endian.
fn pack(linear: &QuantizedLinear) -> Vec<Vec<u8>> {
    let rows = linear.codes.chunks_exact(linear.columns);
    let codes: Vec<u32> = rows.flat_map(|codes| bits::pack(codes, linear.grid.bits)).collect();
    let scales = linear.half_scales().iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let shape = [linear.rows, linear.columns].into_iter().flat_map(|extent| (extent as u64).to_le_bytes()).collect();
    let zeros = (!linear.grid.is_symmetric()).then(|| bits::bytes(&pack_zeros(linear)));
    [bits::bytes(&codes), scales].into_iter().chain(zeros).chain([shape]).collect()
}

/// `weight_zero_point`, `[rows·bits/32, groups]`: column g is the bit string of the zero points of group g.
fn pack_zeros(linear: &QuantizedLinear) -> Vec<u32> {
    let (groups, points) = (linear.groups(), linear.zero_points());
    let mut words = vec![0; (linear.rows * linear.grid.bits as usize).div_ceil(32) * groups];
    for group in 0..groups {
        let zeros: Vec<u8> = points.iter().skip(group).step_by(groups).copied().collect();
        for (index, word) in bits::pack(&zeros, linear.grid.bits).into_iter().enumerate() {
            words[index * groups + group] = word;
        }
    }
    words
}

/// The quantization configuration of `model`, with one group of settings for each number of bits.
fn description(model: &PlannedModel) -> Value {
    let mut rules: Vec<(String, u32)> = Vec::new();
    for (module, bits) in LayerKind::all(model).iter().flat_map(LayerKind::rules) {
        rules.extend(bits.map(|bits| (target(&module), bits)));
    }
    let head = model.bits_of(&model.head.name);
    rules.extend(head.map(|bits| (target(&regex::escape(&model.head.name)), bits)));
    let mut widths: Vec<u32> = rules.iter().map(|(_, bits)| *bits).collect();
    widths.sort_unstable();
    widths.dedup();
    let groups = widths.iter().enumerate().map(|(index, width)| {
        let targets: Vec<&str> =
            rules.iter().filter(|(_, bits)| bits == width).map(|(rule, _)| rule.as_str()).collect();
        (format!("group_{index}"), group(model, *width, &targets))
    });
    let ignored: Vec<&str> = if head.is_some() { Vec::new() } else { vec![&model.head.name] };
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": ignored,
        "config_groups": groups.collect::<Map<_, _>>(),
    })
}

/// A target of a group: the modules whose path matches the regular expression `module`. The language model inside of a
/// larger model has another path in memory than in the files.
fn target(module: &str) -> String {
    const INSIDE: [&str; 2] = [r"model\.language_model\.", r"language_model\.model\."];
    let inside = INSIDE.iter().find_map(|outside| module.strip_prefix(outside));
    match inside {
        Some(inside) => format!("re:^(?:{})?{inside}$", INSIDE.join("|")),
        None => format!("re:^{module}$"),
    }
}

/// The settings of the layers `targets`, with `width` bits per code.
fn group(model: &PlannedModel, width: u32, targets: &[&str]) -> Value {
    let strategy = if model.settings.group_size.is_some() { "group" } else { "channel" };
    json!({
        "targets": targets,
        "input_activations": null,
        "output_activations": null,
        "weights": {
            "num_bits": width,
            "type": "int",
            "symmetric": model.settings.symmetric,
            "strategy": strategy,
            "group_size": model.settings.group_size,
            "dynamic": false,
            "actorder": null,
        },
    })
}

/// The packed layers of one checkpoint.
#[derive(Debug, PartialEq, Eq)]
struct PackQuantized {
    /// Bits per code of the groups of settings. The shapes of its tensors tell which of them a layer has.
    widths: Vec<u32>,
}

fn open(description: &Map<String, Value>, subject: &str) -> Opened {
    let fields = Fields::new(subject, description);
    let ours = fields.text("quant_method")? == Some("compressed-tensors");
    if !ours || fields.text("format")? != Some("pack-quantized") {
        return Ok(None);
    }
    let groups = fields.object("config_groups")?.ok_or_else(|| fields.refuse("config_groups", "\"config_groups\""))?;
    let mut widths = Vec::new();
    for name in groups.object.keys() {
        let group = groups.object(name)?.ok_or_else(|| groups.refuse(name, "an object"))?;
        let weights = group.object("weights")?.ok_or_else(|| groups.refuse(name, "a group with \"weights\""))?;
        let bits = weights.required_count("num_bits")? as u32;
        if !(1..=8).contains(&bits) || weights.text("type")? != Some("int") {
            return Err(groups.refuse(name, "\"num_bits\" of 1 to 8 and \"type\": \"int\""));
        }
        if weights.text("actorder")? == Some("group") {
            return Err(weights.refuse("actorder", "null, \"static\" or \"weight\""));
        }
        widths.push(bits);
    }
    widths.dedup();
    Ok(Some(Box::new(PackQuantized { widths })))
}

impl PackedLayers for PackQuantized {
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>> {
        let [rows, columns] = *shape else { return None };
        let module = name.strip_suffix(".weight")?;
        let (_, packed) = stored(&format!("{module}.weight_packed"))?;
        let words = packed.last().copied().unwrap_or_default();
        let fits = |bits: &&u32| (columns * **bits as usize).div_ceil(32) == words;
        let bits = self.widths.iter().find(fits).or(self.widths.first()).copied()?;
        let scales = stored(&format!("{module}.weight_scale")).map(|(_, shape)| shape.last().copied());
        // A number of groups that does not divide the columns ends in an error about the shape of the scales.
        let groups = scales.flatten().filter(|&groups| groups > 0 && columns.is_multiple_of(groups)).unwrap_or(1);
        let symmetric = stored(&format!("{module}.weight_zero_point")).is_none();
        Some(Shapes { rows, columns, bits, groups, symmetric }.parts(module))
    }

    fn unpack(&self, layer: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let module = module_of(layer.name);
        let [rows, columns] = layer.shape;
        let (codes, scales, zeros, shape) = match &layer.parts[..] {
            [PartData::Words(codes), PartData::Floats(scales), PartData::Words(shape)] => (codes, scales, None, shape),
            [PartData::Words(codes), PartData::Floats(scales), PartData::Words(zeros), PartData::Words(shape)] => {
                (codes, scales, Some(zeros), shape)
            }
            _ => return Err(Error::shape("compressed_tensors::unpack", format!("{module}: not its tensors"))),
        };
        if shape[..] != [rows as u32, 0, columns as u32, 0] {
            return Err(Error::input(
                layer.place,
                format!("{module}.weight_shape of another matrix"),
                format!("{rows} and {columns}, as config.json describes the layer"),
                "download the checkpoint again, or correct config.json",
            ));
        }
        let (stride, groups) = (codes.len() / rows, scales.len() / rows);
        let fits = |bits: &&u32| (columns * **bits as usize).div_ceil(32) == stride;
        let bits = self.widths.iter().find(fits).copied().unwrap_or(4);
        let zeros = zeros.map(|zeros| unpack_zeros(zeros, bits, [rows, groups]));
        let middle = (1u16 << (bits - 1)) as u8;
        let mut weight = Vec::with_capacity(layer.rows.len() * columns);
        for row in layer.rows.clone() {
            let codes = bits::unpack(&codes[row * stride..][..stride], bits, columns);
            for (group, codes) in codes.chunks(columns / groups).enumerate() {
                let cell = row * groups + group;
                let zero = f32::from(zeros.as_ref().map_or(middle, |zeros| zeros[cell]));
                weight.extend(codes.iter().map(|&code| scales[cell] * (f32::from(code) - zero)));
            }
        }
        Ok(weight)
    }
}

/// Unpacks `weight_zero_point` to the zero points, `[rows, groups]`.
fn unpack_zeros(words: &[u32], bits: u32, [rows, groups]: [usize; 2]) -> Vec<u8> {
    let mut zeros = vec![0; rows * groups];
    for group in 0..groups {
        let column: Vec<u32> = words.iter().skip(group).step_by(groups).copied().collect();
        for (row, zero) in bits::unpack(&column, bits, rows).into_iter().enumerate() {
            zeros[row * groups + group] = zero;
        }
    }
    zeros
}
