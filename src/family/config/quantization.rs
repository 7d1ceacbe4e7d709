//! `quantization_config` of a checkpoint that is quantized already (formats.md, a).

use serde_json::Value;

use super::fields::Fields;
use crate::{Error, Result};

/// How a GPTQ checkpoint was quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs per group; `None` is one group per output row (written −1).
    pub group_size: Option<usize>,
    /// Whether every zero point is 2^(bits−1).
    pub symmetric: bool,
    /// Whether columns were quantized out of order, so that `g_idx` is not `k / group_size`.
    pub desc_act: bool,
    /// How zero points are stored.
    pub checkpoint_format: ZeroPointFormat,
    /// Layers with bits of their own: a regular expression for the start of the module path, and bits. The first that matches
    /// counts, as in GPTQModel.
    pub dynamic: Vec<(String, u32)>,
}

/// How `qzeros` stores a zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPointFormat {
    /// `gptq`: z − 1.
    V1,
    /// `gptq_v2`: z.
    V2,
}

impl ZeroPointFormat {
    /// The name in `checkpoint_format`.
    pub fn label(self) -> &'static str {
        match self {
            Self::V1 => "gptq",
            Self::V2 => "gptq_v2",
        }
    }
}

impl QuantizationConfig {
    /// Reads the object under `quantization_config` of a config.json, or the whole of a quantize_config.json.
    pub fn from_value(value: &Value, subject: &str) -> Result<Self> {
        let Some(object) = value.as_object() else {
            return Err(unsupported(subject, "a quantization configuration that is no JSON object"));
        };
        let fields = Fields { subject, object };
        let method = fields.text("quant_method")?.unwrap_or("gptq");
        if method != "gptq" {
            return Err(unsupported(subject, &format!("weights quantized with \"{method}\"")));
        }
        if fields.text("pack_dtype")?.is_some_and(|dtype| dtype != "int32") {
            return Err(fields.refuse("pack_dtype", "\"int32\""));
        }
        let bits = fields.required_count("bits")? as u32;
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return Err(fields.refuse("bits", "2, 3, 4 or 8"));
        }
        Ok(Self {
            bits,
            group_size: group_size(fields)?,
            symmetric: fields.flag("sym")?.unwrap_or(true),
            desc_act: fields.flag("desc_act")?.unwrap_or(false),
            checkpoint_format: zero_point_format(fields)?,
            dynamic: dynamic(fields)?,
        })
    }

    /// Bits per code of the layer of that module path.
    pub fn bits_of(&self, module: &str) -> u32 {
        let matching =
            self.dynamic.iter().find(|(pattern, _)| anchored(pattern).is_ok_and(|rule| rule.is_match(module)));
        matching.map_or(self.bits, |(_, bits)| *bits)
    }
}

/// The rules for single layers. One that leaves a layer unquantized says nothing that the tensors do not show.
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

/// As Python's `re.match` takes a pattern.
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

fn zero_point_format(fields: Fields<'_>) -> Result<ZeroPointFormat> {
    let key = if fields.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    match fields.text(key)?.unwrap_or("gptq") {
        "gptq" => Ok(ZeroPointFormat::V1),
        "gptq_v2" => Ok(ZeroPointFormat::V2),
        _ => Err(fields.refuse(key, "\"gptq\" or \"gptq_v2\"")),
    }
}

fn unsupported(subject: &str, found: &str) -> Error {
    Error::input(subject, found, "float weights or GPTQ", "use the original, unquantized checkpoint")
}
