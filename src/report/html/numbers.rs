//! Numbers and names as text. A number and its unit stay on one line.

use crate::quant::{Alpha, AlphaPolicy};

/// Four significant digits; with an exponent only for very large and very small values.
pub fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    if !(1e-4..1e6).contains(&value.abs()) {
        return format!("{value:.3e}");
    }
    let digits = (3.0 - value.abs().log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

/// As [`significant`], or a dash.
pub fn optional(value: Option<f64>) -> String {
    value.map_or("–".to_string(), significant)
}

/// A share in percent.
pub fn percent(share: f64, digits: usize) -> String {
    format!("{:.digits$}\u{a0}%", 100.0 * share)
}

/// Two decimals, as perplexities are published.
pub fn perplexity(value: f64) -> String {
    if value < 10_000.0 { format!("{value:.2}") } else { significant(value) }
}

/// A time in seconds, in minutes and seconds, or in hours and minutes.
pub fn seconds(value: f64) -> String {
    let whole = value.round().max(0.0) as u64;
    match whole {
        0..100 => format!("{value:.1}\u{a0}s"),
        100..3600 => format!("{}\u{a0}min {:02}\u{a0}s", whole / 60, whole % 60),
        _ => format!("{}\u{a0}h {:02}\u{a0}min", whole / 3600, whole % 3600 / 60),
    }
}

/// Bytes in decimal units.
pub fn bytes(value: u64) -> String {
    let value = value as f64;
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| value >= *unit) {
        Some((unit, name)) => format!("{:.1}\u{a0}{name}", value / unit),
        None => format!("{value}\u{a0}bytes"),
    }
}

/// α as it was asked for.
pub fn alpha(alpha: Alpha) -> String {
    match alpha {
        Alpha::Off => "off".to_string(),
        Alpha::Auto => "auto".to_string(),
        Alpha::Fixed(value) => value.to_string(),
    }
}

/// The α of all layers: the default, then the overrides.
pub fn policy(policy: &AlphaPolicy) -> String {
    let overrides = policy.overrides.iter().map(|(pattern, value)| format!("{pattern} = {}", alpha(*value)));
    let parts: Vec<String> = std::iter::once(alpha(policy.default)).chain(overrides).collect();
    parts.join(", ")
}

/// The group size in words.
pub fn group_size(size: Option<usize>) -> String {
    size.map_or("one per row".to_string(), |size| format!("groups of {size}"))
}

/// The last part of a path.
pub fn file_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path)
}

/// A JSON value of an option in words. A tagged value becomes "tag value".
pub fn value(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Null => "none".to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_string(),
        Value::Array(items) => items.iter().map(self::value).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key} {}", self::value(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
