//! The quantization configuration of a GPTQ checkpoint: writes it from a planned model, and reads it from a checkpoint.
//!
//! The configuration stands in config.json under `quantization_config`, and again in quantize_config.json.

use serde_json::{Map, Value, json};

use super::super::kinds::LayerKind;
use super::ZeroPoints;
use crate::checkpoint::format::{PlannedModel, QuantizationSettings};
use crate::family::config::fields::Fields;
use crate::{Error, Result};

/// The quantization configuration of `model`.
pub fn description(model: &PlannedModel) -> Value {
    let mut description = settings(&model.settings);
    if model.bits_of(&model.head.name).is_some() {
        description["lm_head"] = true.into();
    }
    add_exceptions(model, &mut description);
    description
}

/// The settings of all layers that have none of their own.
fn settings(settings: &QuantizationSettings) -> Value {
    let label = ZeroPoints::of(settings.symmetric).label();
    let group_size = settings.group_size.map_or(-1, |size| size as i64);
    let mut description = json!({
        "quant_method": "gptq",
        "bits": settings.bits,
        "group_size": group_size,
        "desc_act": false,
        "sym": settings.symmetric,
        "lm_head": false,
        "checkpoint_format": label,
        "format": label,
        "pack_dtype": "int32",
        "true_sequential": true,
    });
    // transformers refuses a damp_percent outside 0 < x < 1, so such a value is left out.
    if settings.damping > 0.0 && settings.damping < 1.0 {
        description["damp_percent"] = json!(settings.damping);
    }
    description["meta"] = json!({ "quantizer": [concat!("aquatint:", env!("CARGO_PKG_VERSION"))] });
    description
}

/// Adds to `description` what clients must know about layers that differ from the others.
///
/// Where the same layers stay unquantized in every block, this is `modules_in_block_to_quantize`, which every client
/// reads. All other differences go into `dynamic`, which GPTQModel and vLLM read.
fn add_exceptions(model: &PlannedModel, description: &mut Value) {
    let (kept, quantized): (Vec<_>, Vec<_>) = LayerKind::all(model).into_iter().partition(LayerKind::is_kept);
    let head = model.bits_of(&model.head.name).map(|bits| (regex::escape(&model.head.name), Some(bits)));
    let mut rules = Map::new();
    for (module, bits) in quantized.iter().flat_map(LayerKind::rules).chain(head) {
        match bits {
            None => rules.insert(format!("-:^{module}$"), json!({})),
            Some(own) if own != model.settings.bits => rules.insert(format!("+:^{module}$"), json!({ "bits": own })),
            Some(_) => None,
        };
    }
    if !kept.is_empty() {
        let modules: Vec<&str> = quantized.iter().filter_map(|kind| kind.place).map(|(_, inside)| inside).collect();
        description["modules_in_block_to_quantize"] = json!([modules]);
    }
    if !rules.is_empty() {
        description["dynamic"] = Value::Object(rules);
    }
}

/// The quantization configuration of a GPTQ checkpoint, as read from its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GptqConfig {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; `None` means one group per output row (written as −1).
    pub group_size: Option<usize>,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// How the file stores zero points.
    pub zero_points: ZeroPoints,
    /// Layers with their own bits: a regular expression for the start of the module path, and the bits per code. The
    /// first match counts, as in GPTQModel.
    pub dynamic: Vec<(String, u32)>,
}

impl GptqConfig {
    /// Reads the quantization configuration `description`. Returns `None` if another method made the checkpoint. Older
    /// GPTQ checkpoints name no method.
    ///
    /// Errors: `Error::Input` if a field cannot be used.
    pub fn read(description: &Map<String, Value>, subject: &str) -> Result<Option<Self>> {
        let fields = Fields::new(subject, description);
        if fields.text("quant_method")?.unwrap_or("gptq") != "gptq" {
            return Ok(None);
        }
        if fields.text("pack_dtype")?.is_some_and(|dtype| dtype != "int32") {
            return Err(fields.refuse("pack_dtype", "\"int32\""));
        }
        // The field is only checked for its type. The tensor g_idx tells whether columns were quantized out of order.
        fields.flag("desc_act")?;
        let bits = fields.required_count("bits")? as u32;
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return Err(fields.refuse("bits", "2, 3, 4 or 8"));
        }
        Ok(Some(Self {
            bits,
            group_size: group_size(fields)?,
            symmetric: fields.flag("sym")?.unwrap_or(true),
            zero_points: zero_points(fields)?,
            dynamic: dynamic(fields)?,
        }))
    }

    /// Bits per code of the layer `module`.
    pub fn bits_of(&self, module: &str) -> u32 {
        let matching =
            self.dynamic.iter().find(|(pattern, _)| anchored(pattern).is_ok_and(|rule| rule.is_match(module)));
        matching.map_or(self.bits, |(_, bits)| *bits)
    }
}

/// Reads the rules for single layers. Rules that leave a layer unquantized are skipped, because the tensors of that
/// layer show the same.
fn dynamic(fields: Fields<'_>) -> Result<Vec<(String, u32)>> {
    let Some(rules) = fields.object("dynamic")? else {
        return Ok(Vec::new());
    };
    let mut dynamic = Vec::new();
    for (rule, settings) in rules.object {
        if rule.starts_with("-:") {
            continue;
        }
        let pattern = rule.strip_prefix("+:").unwrap_or(rule);
        let bits = settings.get("bits").and_then(Value::as_u64);
        let alone = settings.as_object().is_some_and(|settings| settings.len() == 1);
        match bits {
            Some(bits @ (2 | 3 | 4 | 8)) if alone && anchored(pattern).is_ok() => {
                dynamic.push((pattern.to_owned(), bits as u32));
            }
            _ => {
                let found = format!("the \"dynamic\" rule \"{rule}\": {settings}");
                return Err(Error::input(
                    fields.subject,
                    found,
                    "a regular expression with \"bits\" of 2, 3, 4 or 8 and nothing else",
                    "use the original, unquantized checkpoint",
                ));
            }
        }
    }
    Ok(dynamic)
}

/// Compiles `pattern` so that it must match at the start of a text, as Python's `re.match` does.
fn anchored(pattern: &str) -> std::result::Result<regex::Regex, regex::Error> {
    regex::Regex::new(&format!("^(?:{pattern})"))
}

fn group_size(fields: Fields<'_>) -> Result<Option<usize>> {
    if fields.get("group_size").and_then(Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    fields
        .count("group_size")?
        .map(Some)
        .ok_or_else(|| fields.refuse("group_size", "\"group_size\" as −1 or at least 1"))
}

/// Reads the version of the format from `checkpoint_format` or, in newer files, `format`. Where both are absent it is
/// v1.
fn zero_points(fields: Fields<'_>) -> Result<ZeroPoints> {
    let key = if fields.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    match fields.text(key)?.unwrap_or("gptq") {
        "gptq" => Ok(ZeroPoints::V1),
        "gptq_v2" => Ok(ZeroPoints::V2),
        _ => Err(fields.refuse(key, "\"gptq\" or \"gptq_v2\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::change::Change;
    use crate::checkpoint::format::{PlannedLayer, Prepared};
    use crate::family::{LinearSpec, ModelConfig};
    use crate::ops::grid::{GridSpec, ScaleType, Symmetry};
    use safetensors::Dtype;

    /// Reads a small configuration to which `fields` are added; they override its own fields.
    fn with(fields: Value) -> Result<Option<GptqConfig>> {
        let mut description = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
        let object = description.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        GptqConfig::read(object, "config.json")
    }

    #[track_caller]
    fn refused(fields: Value, parts: &[&str]) {
        let message = with(fields).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }

    #[test]
    fn a_description_is_read_or_refused() {
        let read = |fields| with(fields).unwrap().unwrap();
        let plain = GptqConfig {
            bits: 4,
            group_size: Some(128),
            symmetric: true,
            zero_points: ZeroPoints::V1,
            dynamic: Vec::new(),
        };
        assert_eq!(read(json!({})), plain);
        assert_eq!(read(json!({"quant_method": null})), plain);
        let other = json!({"group_size": -1, "sym": false, "desc_act": true, "format": "gptq_v2", "bits": 3});
        let expected = GptqConfig { bits: 3, group_size: None, symmetric: false, zero_points: ZeroPoints::V2, ..plain };
        assert_eq!(read(other), expected);
        assert_eq!(with(json!({"quant_method": "awq"})).unwrap(), None);
        refused(json!({"bits": 5}), &["\"bits\": 5"]);
        refused(json!({"group_size": 0}), &["\"group_size\": 0"]);
        refused(json!({"desc_act": 1}), &["\"desc_act\": 1"]);
        refused(json!({"checkpoint_format": "marlin"}), &["marlin", "gptq_v2"]);
        refused(json!({"dynamic": {"+:x": {"bits": 5}}}), &["dynamic", "+:x"]);
        refused(json!({"dynamic": {"+:x": {"bits": 8, "group_size": 32}}}), &["dynamic", "+:x"]);
        refused(json!({"dynamic": {"+:(": {"bits": 8}}}), &["dynamic", "+:("]);
        let rules = json!({"-:a\\.b": {}, "+:model\\.layers\\.1\\.": {"bits": 8}, "layers": {"bits": 2}});
        let mixed = read(json!({ "dynamic": rules }));
        let bits = |module: &str| mixed.bits_of(module);
        assert_eq!((bits("model.layers.1.x"), bits("model.layers.11.x"), bits("layers.1")), (8, 4, 2));
    }

    #[test]
    fn blocks_need_not_be_alike() {
        let linear = |name: &str| LinearSpec::new(name, 32, 32);
        let settings =
            QuantizationSettings { bits: 4, group_size: None, symmetric: true, mixture: None, damping: 0.01 };
        let names =
            ["0.mlp.up", "1.mlp.experts.0.up", "1.mlp.experts.1.up", "2.mlp.experts.0.up", "2.mlp.experts.1.up"];
        let linears: Vec<LinearSpec> = names.iter().map(|name| linear(&format!("layers.{name}"))).collect();
        let planned = |spec: &LinearSpec| {
            let bits = if spec.name.starts_with("layers.2.mlp.experts.1.") { 8 } else { 4 };
            let grid = GridSpec::new(bits, 32, Symmetry::Symmetric, ScaleType::F16);
            let module = spec.name.clone();
            (
                module.clone(),
                PlannedLayer { spec: spec.clone(), module, change: Change::None, grid, original: Dtype::F16 },
            )
        };
        let layers = linears[1..].iter().map(planned).collect();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3,
            "num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        });
        let config = ModelConfig::from_value(&config, "config.json").unwrap();
        let (float, head, prepared) = (Dtype::F16, linear("lm_head"), Prepared::Nothing);
        let description = description(&PlannedModel { settings, config, prepared, float, linears, head, layers });
        assert_eq!(description["modules_in_block_to_quantize"], json!([["mlp.experts.0.up", "mlp.experts.1.up"]]));
        assert_eq!(description["dynamic"], json!({ r"+:^layers\.2\.mlp\.experts\.1\.up$": { "bits": 8 } }));
    }
}
