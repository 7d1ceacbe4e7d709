//! The affine format of MLX, which mlx-lm reads on Apple silicon and elsewhere (formats.md, section e).
//!
//! A row of codes q is one bit string, and W = scale·q + bias, with a scale and a bias per group. A zero point z is the
//! bias −scale·z. All other float tensors have the float type of the model. Names are those of Hugging Face, except in
//! models with other modalities, whose language model mlx-lm expects below `language_model.`.

use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::codes_of;
use crate::checkpoint::change::Change;
use crate::checkpoint::format::{
    Container, Format, GridWish, Part, PlannedLayer, PlannedModel, Prepared, Rest, RestTensor,
};
use crate::checkpoint::layout::{Layout, Lookup, Opened, Origin, PackedLayers, PackedWeight, PartData, module_of};
use crate::checkpoint::{bits, floats, passengers};
use crate::device::recycled;
use crate::error::{Setting, phrase};
use crate::family::config::fields::Fields;
use crate::family::{self, LinearSpec, ModelConfig, Op};
use crate::ops::grid::{GridSpec, ScaleType, Steps};
use crate::stored::{Form, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// Stores packed codes, scales and biases.
#[derive(Debug)]
pub struct Mlx;

/// The layout of the layers that this format writes.
pub static LAYOUT: Layout = Layout { name: "MLX", origin: Origin::Quantization, open };

/// Bits per code for which MLX has kernels.
const WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];

/// Inputs per group for which MLX has kernels.
const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// The key of config.json that describes the quantized layers. A copy stands under `quantization_config`.
pub const KEY: &str = "quantization";

/// The models of this crate that mlx-lm 0.32 does not know, by their `model_type`.
const UNKNOWN_MODELS: [&str; 5] = ["arcee", "bloom", "falcon", "gemma4_unified_text", "opt"];

/// The models in which mlx-lm 0.32 always ties the output matrix to the embedding, by their `model_type`.
const ALWAYS_TIED: [&str; 5] = ["cohere", "cohere2", "gemma", "gemma2", "gpt2"];

/// The models whose sliding windows mlx-lm 0.32 ignores, by their `model_type`.
const WITHOUT_WINDOWS: [&str; 6] = ["gemma2", "mistral", "phi3", "qwen2", "qwen3", "starcoder2"];

/// The models with two tables of rotary angles of which mlx-lm 0.32 reads the older keys only, by their `model_type`.
const TWO_TABLES: [&str; 3] = ["gemma3", "gemma3_text", "olmo3"];

impl Format for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn summary(&self) -> &'static str {
        "MLX's affine layout, for mlx-lm on Apple silicon"
    }

    fn stores(&self, form: Form) -> bool {
        form == Form::Codes
    }

    fn grid(&self, linear: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        let LinearSpec { ref name, columns, .. } = *linear;
        if !WIDTHS.contains(&wish.bits) {
            let expected = "2, 3, 4, 5, 6 or 8, as MLX has it";
            return Err(Error::input(Setting::Bits, wish.bits.to_string(), expected, "choose one of these"));
        }
        if GROUP_SIZES.contains(&wish.group_size) && columns.is_multiple_of(wish.group_size) {
            return Ok(GridSpec::with_offsets(wish.bits, wish.group_size, scale_type(wish.float)));
        }
        let fitting = GROUP_SIZES.into_iter().find(|&size| columns.is_multiple_of(size));
        let remedy = match fitting {
            Some(size) => phrase!["choose ", Setting::GroupSize.set_to(size)],
            None => phrase!["leave the layer out with ", Setting::Skip, ", or choose another ", Setting::Format],
        };
        let found = format!("{} for the {columns} inputs of {name}", wish.group_size);
        let expected = "32, 64 or 128 that divides them, as MLX demands";
        Err(Error::input(Setting::GroupSize, found, expected, remedy))
    }

    fn container(&self) -> Container {
        Container::Directory { written_for: "mlx" }
    }

    fn stored_name(&self, (config, _): (&ModelConfig, &Prepared), name: &str) -> Result<String> {
        Ok(stored_name(config, name))
    }

    fn rest(&self, model: &PlannedModel, tensor: &RestTensor<'_>) -> Result<Rest> {
        Ok(match tensor.passenger {
            // mlx-lm drops the towers of such models itself, and refuses any other tensor without a use.
            Some(part) if model.config.is_part() && !["MTP head", "unused buffers"].contains(&part) => Rest::Keep,
            Some(_) => Rest::LeaveOut,
            None if tensor.dtype == model.float && !is_transposed(model, tensor.name) => Rest::Keep,
            None => Rest::Convert { dtype: model.float, change: Change::None },
        })
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        let LinearSpec { rows, columns, .. } = layer.spec;
        let words = columns * layer.grid.bits as usize / 32;
        parts(&layer.module, &[rows], words, columns / layer.grid.group_size, float_of(layer))
    }

    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        pack(codes_of(linear)?, float_of(layer))
    }

    fn describe(&self, model: &PlannedModel, config: &mut Map<String, Value>) -> Vec<(String, Value)> {
        let description = description(model);
        if TWO_TABLES.contains(&model.config.model_type) {
            state_older_rope(model.config.keys_in(config), model.config.model_type);
        }
        config.insert(KEY.to_owned(), description.clone());
        config.insert("quantization_config".to_owned(), description);
        Vec::new()
    }

    fn notes(&self, model: &PlannedModel) -> Vec<String> {
        let kind = model.config.model_type;
        let unknown = UNKNOWN_MODELS.contains(&kind);
        let unknown = unknown.then(|| format!("mlx-lm 0.32 knows no model of the type {kind} and will not load this"));
        let unties = model.config.tie_word_embeddings && model.bits_of(&model.head.name).is_some();
        let tied = (unties && ALWAYS_TIED.contains(&kind)).then(|| {
            format!(
                "mlx-lm 0.32 has no output matrix apart from the embedding in models of the type {kind} and will not \
                 load this"
            )
        });
        let window = window(&model.config).filter(|_| WITHOUT_WINDOWS.contains(&kind));
        let window = window.map(|tokens| {
            format!(
                "mlx-lm 0.32 ignores the sliding window of {kind} and computes something else after {tokens} tokens"
            )
        });
        unknown.into_iter().chain(tied).chain(window).collect()
    }
}

/// Adds the older keys of RoPE to `keys` if they have a table for each kind of layer. Keys that are there stay. Olmo 3 has
/// no key for a second base, since both of its tables have the same.
fn state_older_rope(keys: &mut Map<String, Value>, model_type: &str) {
    let table = |kind: &str| keys.get("rope_parameters")?.get(kind)?.as_object().cloned();
    let (Some(mut full), Some(sliding)) = (table("full_attention"), table("sliding_attention")) else { return };
    let theta = (full.remove("rope_theta"), sliding.get("rope_theta").cloned());
    let scaling = full.get("rope_type").is_some_and(|kind| kind != "default").then_some(Value::Object(full));
    let local = theta.1.filter(|_| model_type != "olmo3");
    let older = [("rope_theta", theta.0), ("rope_local_base_freq", local), ("rope_scaling", scaling)];
    for (key, value) in older {
        if let (Some(value), None | Some(Value::Null)) = (value, keys.get(key)) {
            keys.insert(key.to_owned(), value);
        }
    }
}

/// As [`Format::stored_name`].
fn stored_name(config: &ModelConfig, name: &str) -> String {
    if config.model_type == "gpt2" && !name.starts_with("lm_head") {
        // mlx-lm turns the weights of GPT-2 itself, unless their names begin with `model.`.
        return format!("model.{}", name.strip_prefix("transformer.").unwrap_or(name));
    }
    if !config.is_part() {
        return name.to_owned();
    }
    let inside = |prefix: &&str| name.strip_prefix(*prefix);
    let name = ["language_model.model.", "model.language_model.", "language_model.", "model."]
        .iter()
        .find_map(inside)
        .unwrap_or(name);
    match name {
        _ if passengers::part_of(name).is_some() => name.to_owned(),
        _ if name.starts_with("lm_head") => format!("language_model.{name}"),
        _ => format!("language_model.model.{name}"),
    }
}

/// The narrowest sliding window that is narrower than the context of the model.
fn window(config: &ModelConfig) -> Option<usize> {
    let nodes = config.distinct_blocks().flat_map(|block| &block.nodes);
    let windows =
        nodes.filter_map(|node| if let Op::Attention(attention) = &node.op { attention.window } else { None });
    windows.filter(|&tokens| tokens < config.max_position_embeddings).min()
}

/// Whether the source stores the weight `name` as `[inputs, outputs]`, which MLX never does.
fn is_transposed(model: &PlannedModel, name: &str) -> bool {
    let is_weight = |linear: &&LinearSpec| name.strip_suffix(".weight") == Some(&linear.name);
    model.linears.iter().find(is_weight).is_some_and(|linear| linear.layout == family::Layout::Columns)
}

/// The type of scales and biases: MLX has them in the float type of the model.
fn scale_type(float: Dtype) -> ScaleType {
    match float {
        Dtype::F16 => ScaleType::F16,
        Dtype::BF16 => ScaleType::Bf16,
        _ => ScaleType::F32,
    }
}

/// The element type of the scales and biases of a layer.
fn float_of(layer: &PlannedLayer) -> Dtype {
    match layer.grid.scale {
        Steps::Own(ScaleType::F16) => Dtype::F16,
        Steps::Own(ScaleType::Bf16) => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// The tensors of the layer `module`, in the order in which they are written. `outer`: the dimensions of the weight
/// without the last one; `words` and `groups`: 32-bit words and groups per row.
fn parts(module: &str, outer: &[usize], words: usize, groups: usize, float: Dtype) -> Vec<Part> {
    let part =
        |suffix, dtype, inner| Part { name: format!("{module}.{suffix}"), dtype, shape: [outer, &[inner]].concat() };
    vec![part("weight", Dtype::U32, words), part("scales", float, groups), part("biases", float, groups)]
}

/// The contents of the tensors of [`parts`], little-endian. Errors: `Error::NotFinite` if a number is too large for `float`.
fn pack(linear: &QuantizedLinear, float: Dtype) -> Result<Vec<Vec<u8>>> {
    let rows = linear.codes.chunks_exact(linear.columns);
    let words: Vec<u32> = rows.flat_map(|codes| bits::pack(codes, linear.grid.bits)).collect();
    let stored = |numbers: &[f32]| {
        floats::encode(numbers, float).ok_or_else(|| Error::NotFinite {
            place: format!("scales of {} in {float}", linear.name),
            remedy: phrase!["use another ", Setting::Format],
        })
    };
    Ok(vec![bits::bytes(&words), stored(&linear.scales)?, stored(&linear.zeros)?])
}

/// The value of [`KEY`]: the settings of the run, and those of each layer that differs.
fn description(model: &PlannedModel) -> Value {
    let default = model.settings.group_size.unwrap_or(GROUP_SIZES[1]);
    let mut description = json!({ "group_size": default, "bits": model.settings.bits, "mode": "affine" });
    for linear in model.linears.iter().chain([&model.head]) {
        let own = match model.layers.get(&linear.name).map(|layer| layer.grid) {
            None => Value::Bool(false),
            Some(grid) if (grid.group_size, grid.bits) == (default, model.settings.bits) => continue,
            Some(grid) => json!({ "group_size": grid.group_size, "bits": grid.bits }),
        };
        description[stored_name(&model.config, &linear.name)] = own;
    }
    description
}

/// The packed layers of one checkpoint.
#[derive(Debug)]
struct MlxLayers;

fn open(description: &Map<String, Value>, subject: &str) -> Opened {
    let fields = Fields::new(subject, description);
    if fields.text("quant_method")?.is_some() {
        return Ok(None);
    }
    let layers = description.values().filter_map(Value::as_object);
    for settings in layers.chain([description]).map(|settings| Fields::new(subject, settings)) {
        if settings.text("mode")?.is_some_and(|mode| mode != "affine") {
            return Err(settings.refuse("mode", "\"affine\""));
        }
    }
    Ok(Some(Box::new(MlxLayers)))
}

/// The bits per code and the groups of a row of `columns` inputs that takes `words` words, if MLX has such rows.
fn settings_of(columns: usize, words: usize, groups: usize) -> Option<u32> {
    let divides = groups > 0 && columns.is_multiple_of(groups);
    WIDTHS.into_iter().find(|&bits| divides && Some(words * 32) == columns.checked_mul(bits as usize))
}

impl PackedLayers for MlxLayers {
    fn parts(&self, name: &str, shape: &[usize], stored: &Lookup<'_>) -> Option<Vec<Part>> {
        let (&columns, outer) = shape.split_last()?;
        let module = name.strip_suffix(".weight")?;
        let last = |suffix: &str| stored(&format!("{module}.{suffix}")).map(|(_, shape)| shape.last().copied());
        let (words, groups) = (last("weight")?.unwrap_or_default(), last("scales")?.unwrap_or_default());
        // Numbers that do not fit the layer end in an error about the shape of a tensor.
        match settings_of(columns, words, groups) {
            Some(_) => Some(parts(module, outer, words, groups, Dtype::F32)),
            None => Some(parts(module, outer, columns * 4 / 32, columns / 64, Dtype::F32)),
        }
    }

    fn stores_rows(&self) -> bool {
        true
    }

    fn unpack(&self, weight: &PackedWeight<'_>) -> Result<Vec<f32>> {
        let [PartData::Words(words), PartData::Floats(scales), PartData::Floats(biases)] = &weight.parts[..] else {
            return Err(Error::shape("mlx::unpack", format!("{}: not its tensors", module_of(weight.name))));
        };
        let [rows, columns] = weight.shape;
        let (stride, groups) = (words.len() / rows.max(1), scales.len() / rows.max(1));
        let Some(bits) = settings_of(columns, stride, groups) else {
            return Err(Error::shape("mlx::unpack", format!("{}: {stride} words in a row", weight.name)));
        };
        let group_size = columns / groups;
        let mut values: Vec<f32> = recycled(weight.rows.len() * columns);
        let lines = values.par_chunks_mut(columns).zip(weight.rows.clone());
        let finite = lines.map(|(values, row)| {
            let codes = bits::unpack(&words[row * stride..][..stride], bits, columns);
            for (group, (values, codes)) in values.chunks_mut(group_size).zip(codes.chunks(group_size)).enumerate() {
                let (scale, bias) = (scales[row * groups + group], biases[row * groups + group]);
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = scale * f32::from(code) + bias);
            }
            values.iter().all(|value| value.is_finite())
        });
        match finite.reduce(|| true, |a, b| a && b) {
            true => Ok(values),
            false => Err(weight.not_finite()),
        }
    }
}
