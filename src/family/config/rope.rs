//! Reads rotary position embedding (RoPE) from `config.json`. There are two forms: the older one, and that of
//! transformers 5.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::{Error, Result};

/// A table of rotary angles: base, scaling, and the number of rotated columns per head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Columns that are rotated in each head, counted from the first; an even number.
    pub rotated: usize,
    /// Base of the geometric series of angles.
    pub theta: f32,
    /// How angles are scaled for contexts longer than those of pre-training.
    pub scaling: RopeScaling,
}

/// Scaling of the rotary angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Unscaled angles.
    None,
    /// Every position is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// The scaling of Llama 3. Frequencies of long wavelengths are divided by `factor`, those of short wavelengths are
    /// kept, and those between are interpolated. `original` below is `original_max_position_embeddings`.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Frequencies with wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Frequencies with wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
}

const DEFAULT_THETA: f32 = 10_000.0;

impl Rope {
    /// Reads `rope_parameters` (the form of transformers 5), or else `rope_theta` and `rope_scaling` (the older form).
    /// `rotated`: rotated columns per head.
    ///
    /// Errors: `Error::Input` if the two forms disagree about theta, or if the type of scaling is not supported.
    pub(in crate::family) fn read(config: Fields<'_>, rotated: usize) -> Result<Self> {
        let parameters = config.object("rope_parameters")?;
        let outer = config.positive("rope_theta")?;
        let inner = parameters.map(|p| p.positive("rope_theta")).transpose()?.flatten();
        if let (Some(outer), Some(inner)) = (outer, inner)
            && outer != inner
        {
            return Err(Error::input(
                config.subject,
                format!("rope_theta {outer} beside rope_parameters.rope_theta {inner}"),
                "the same value in both",
                "remove the wrong one",
            ));
        }
        let scaling = match parameters {
            Some(parameters) => Some(parameters),
            None => config.object("rope_scaling")?,
        };
        Ok(Self {
            rotated,
            theta: inner.or(outer).unwrap_or(DEFAULT_THETA),
            scaling: scaling.map_or(Ok(RopeScaling::None), RopeScaling::parse)?,
        })
    }
}

/// Reads the share of the columns of a head that is rotated. It may stand at the top level, in `rope_parameters` or in
/// `rope_scaling`. `None` if the file does not give it.
pub(in crate::family) fn partial_rotary_factor(config: Fields<'_>) -> Result<Option<f32>> {
    let nested = [config.object("rope_parameters")?, config.object("rope_scaling")?];
    for fields in [Some(config)].into_iter().chain(nested).flatten() {
        if let Some(part) = fields.positive("partial_rotary_factor")? {
            return Ok(Some(part));
        }
    }
    Ok(None)
}

/// Refuses a model that rotates only a part of each head. Errors: `Error::Input`.
pub(in crate::family) fn require_whole_heads(config: Fields<'_>) -> Result<()> {
    match partial_rotary_factor(config)? {
        None | Some(1.0) => Ok(()),
        Some(part) => Err(Error::input(
            config.subject,
            format!("\"partial_rotary_factor\": {part}"),
            "rotary embedding of whole heads (1.0)",
            "correct the file or download it again",
        )),
    }
}

impl RopeScaling {
    fn parse(fields: Fields<'_>) -> Result<Self> {
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: fields.required_positive("factor")? }),
            "llama3" => {
                let low_freq_factor = fields.required_positive("low_freq_factor")?;
                let high_freq_factor = fields.required_positive("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    return Err(fields.refuse("high_freq_factor", "a number above low_freq_factor"));
                }
                Ok(Self::Llama3 {
                    factor: fields.required_positive("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: fields.required_count("original_max_position_embeddings")?,
                })
            }
            other => Err(Error::input(
                fields.subject,
                format!("rope type \"{other}\""),
                "\"default\", \"linear\" or \"llama3\"",
                "choose a model with one of these; the others are not implemented yet",
            )),
        }
    }
}

/// Completes a `config.json` so that it describes RoPE in both forms. Readers of one form ignore the other, and a
/// reader of the older form silently takes a missing top-level `rope_theta` as 10000 (formats.md, fact 7).
pub(crate) fn state_both_forms(config: &mut Map<String, Value>, rope: &Rope) {
    let theta = theta_as_written(config, rope);
    let parameters = config.get("rope_parameters").and_then(Value::as_object).cloned();
    match parameters {
        Some(mut scaling) => {
            scaling.remove("rope_theta");
            if rope.scaling != RopeScaling::None {
                config.insert("rope_scaling".into(), Value::Object(scaling));
            }
        }
        None => {
            let mut parameters = config.get("rope_scaling").and_then(Value::as_object).cloned().unwrap_or_default();
            let kind = parameters.remove("type");
            let kind = parameters.get("rope_type").cloned().or(kind).unwrap_or_else(|| "default".into());
            parameters.insert("rope_type".into(), kind);
            parameters.insert("rope_theta".into(), theta.clone());
            config.insert("rope_parameters".into(), Value::Object(parameters));
        }
    }
    config.insert("rope_theta".into(), theta);
}

/// The JSON number of theta from the file, so that no digit changes. Computed from `rope` if the file has none.
fn theta_as_written(config: &Map<String, Value>, rope: &Rope) -> Value {
    let inner = config.get("rope_parameters").and_then(|p| p.get("rope_theta"));
    let written = inner.or_else(|| config.get("rope_theta")).filter(|theta| theta.is_number());
    written.cloned().unwrap_or_else(|| f64::from(rope.theta).into())
}
