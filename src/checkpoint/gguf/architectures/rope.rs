//! Tables of rotary angles, as llama.cpp describes them.
//!
//! Scaling that llama.cpp has no keys for is a tensor with a divisor of every frequency. Read back, such a tensor is a
//! table of LongRoPE with the same divisors.

use std::f64::consts::TAU;

use serde_json::{Map, Value as Json, json};

use super::AddedTensor;
use super::contents::Contents;
use super::facts::Facts;
use super::keys::Scoped;
use super::table::{Architecture, Scaling};
use crate::family::{Rope, RopeScaling};
use crate::{Error, Result};

/// Divisors of the frequencies of all layers, or of those without a window.
pub const FREQUENCIES: &str = "rope_freqs.weight";
/// Divisors of the frequencies in long texts.
pub const LONG: &str = "rope_factors_long.weight";
/// Divisors of the frequencies in short texts.
pub const SHORT: &str = "rope_factors_short.weight";

/// The divisor that stands for an angle of zero.
const STILL: f64 = 1e30;

/// What YaRN multiplies cosines and sines by in llama.cpp, for a multiplier of 1.
fn yarn_magnitude(factor: f64, multiplier: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * multiplier * factor.ln() }
}

/// Writes the keys of the tables of a model. Returns the tensors that belong to them.
pub(super) fn write(keys: &mut Scoped<'_>, facts: &Facts<'_>, architecture: &Architecture) -> Vec<AddedTensor> {
    let Some(rope) = facts.rope() else { return Vec::new() };
    keys.set("rope.dimension_count", rope.rotated);
    keys.set("rope.freq_base", rope.theta);
    if let Some(sliding) = facts.sliding_rope() {
        keys.set("rope.freq_base_swa", sliding.theta);
        if sliding.rotated != rope.rotated {
            keys.set("rope.dimension_count_swa", sliding.rotated);
        }
    }
    match &rope.scaling {
        RopeScaling::None => Vec::new(),
        RopeScaling::Linear { factor } => {
            keys.set("rope.scaling.type", "linear");
            keys.set("rope.scaling.factor", *factor);
            Vec::new()
        }
        &RopeScaling::Yarn {
            factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings, ..
        } => {
            keys.set("rope.scaling.type", "yarn");
            keys.set("rope.scaling.factor", factor);
            keys.set("rope.scaling.original_context_length", original_max_position_embeddings);
            keys.set("rope.scaling.yarn_beta_fast", beta_fast);
            keys.set("rope.scaling.yarn_beta_slow", beta_slow);
            if attention_factor == 1.0 && architecture.name == "mistral3" {
                // Its files say so in another way.
                keys.set("rope.scaling.yarn_log_multiplier", 1.0);
            } else if attention_factor != yarn_magnitude(factor, 1.0) {
                keys.set("rope.scaling.attn_factor", attention_factor / yarn_magnitude(factor, 1.0));
            }
            Vec::new()
        }
        // As such a table is read from a file.
        RopeScaling::LongRope { short_factor, long_factor, attention_factor: 1.0, .. }
            if short_factor == long_factor && architecture.scaling.contains(&Scaling::Divisors) =>
        {
            vec![AddedTensor::new(FREQUENCIES, long_factor)]
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
            keys.set("rope.scaling.type", "longrope");
            keys.set("rope.scaling.original_context_length", *original_max_position_embeddings);
            keys.set("rope.scaling.attn_factor", *attention_factor);
            vec![AddedTensor::new(LONG, long_factor), AddedTensor::new(SHORT, short_factor)]
        }
        RopeScaling::Llama3 { .. } | RopeScaling::Proportional { .. } => {
            let [divisors, _] = divisors(rope).expect("the scaling has divisors");
            vec![AddedTensor::new(FREQUENCIES, &divisors)]
        }
    }
}

/// The divisors of the frequencies in short and in long texts. `None` for YaRN, which has keys of its own.
fn divisors(rope: &Rope) -> Option<[Vec<f64>; 2]> {
    let pairs = 0..rope.rotated / 2;
    let one = match &rope.scaling {
        RopeScaling::None => vec![1.0; pairs.len()],
        RopeScaling::Linear { factor } => vec![*factor; pairs.len()],
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let divisor = |pair: usize| {
                let frequency = rope.theta.powf(-2.0 * pair as f64 / rope.rotated as f64);
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                1.0 / ((1.0 - kept) / factor + kept)
            };
            pairs.map(divisor).collect()
        }
        &RopeScaling::Proportional { turning, factor } => {
            pairs.map(|pair| if 2 * pair < turning { factor } else { STILL }).collect()
        }
        RopeScaling::LongRope { short_factor, long_factor, .. } => {
            return Some([short_factor.clone(), long_factor.clone()]);
        }
        RopeScaling::Yarn { .. } => return None,
    };
    Some([one.clone(), one])
}

/// Whether two tables have the same angles, but for the rounding of numbers to f32.
pub(super) fn are_alike(a: &Rope, b: &Rope) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    let closes = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| close(a, b));
    let growth = match (a.growth, b.growth) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            close(a.beta, b.beta) && a.original_max_position_embeddings == b.original_max_position_embeddings
        }
        _ => false,
    };
    let scaling = match (&a.scaling, &b.scaling) {
        (RopeScaling::Yarn { .. }, RopeScaling::Yarn { .. }) => {
            let [(a, a_whole), (b, b_whole)] = [&a.scaling, &b.scaling].map(yarn_numbers);
            closes(&a, &b) && a_whole == b_whole
        }
        _ => match (divisors(a), divisors(b)) {
            (Some(of_a), Some(of_b)) => {
                closes(&of_a.concat(), &of_b.concat()) && close(magnitude(&a.scaling), magnitude(&b.scaling))
            }
            _ => false,
        },
    };
    a.rotated == b.rotated && close(a.theta, b.theta) && growth && scaling
}

/// The numbers of YaRN, and whether it rounds indices.
fn yarn_numbers(scaling: &RopeScaling) -> ([f64; 5], bool) {
    match *scaling {
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            original_max_position_embeddings,
        } => ([factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings as f64], truncate),
        _ => ([1.0; 5], true),
    }
}

/// The factor of cosines and sines.
fn magnitude(scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => attention_factor,
        _ => 1.0,
    }
}

/// The `rope_parameters` of the only table of a file, or of that of the layers without a window. `head_dim`: columns of
/// a head.
pub(super) fn parameters(
    file: &Contents<'_>,
    architecture: &Architecture,
    head_dim: usize,
) -> Result<Map<String, Json>> {
    let rotated = file.count("rope.dimension_count")?.unwrap_or(head_dim);
    let theta = file.float("rope.freq_base")?.unwrap_or(10_000.0);
    let mut keys = Map::new();
    keys.insert("rope_theta".to_owned(), theta.into());
    keys.insert("partial_rotary_factor".to_owned(), share(rotated, head_dim).into());
    keys.extend(scaling(file, architecture)?);
    Ok(keys)
}

/// The keys of `rope_parameters` that scale the angles.
fn scaling(file: &Contents<'_>, architecture: &Architecture) -> Result<Map<String, Json>> {
    let follows = |scaling| architecture.scaling.contains(&scaling);
    let positions = file.count("context_length")?.unwrap_or(1);
    let original = file.count("rope.scaling.original_context_length")?.unwrap_or(positions);
    let attention_factor = file.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let factor = file.float("rope.scaling.factor")?.filter(|&factor| factor > 0.0).unwrap_or(1.0);
    let divisors = file.values(FREQUENCIES).filter(|_| follows(Scaling::Divisors)).map(|all| [all, all]);
    let by_length = file.values(SHORT).zip(file.values(LONG)).filter(|_| follows(Scaling::ShortAndLong));
    let parameters = match (divisors.or(by_length.map(<[_; 2]>::from)), file.text("rope.scaling.type")?) {
        (Some([short, long]), _) => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original,
        }),
        (None, Some("yarn")) if follows(Scaling::Factor) => {
            let turns = |key, usual| {
                let turns = if follows(Scaling::Turns) { file.float(key)? } else { None };
                Ok::<_, Error>(turns.unwrap_or(usual))
            };
            // A multiplier of 0 counts as absent.
            let all = file.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
            let magnitude = yarn_magnitude(factor, 1.0) / yarn_magnitude(factor, all);
            json!({
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": turns("rope.scaling.yarn_beta_fast", 32.0)?,
                "beta_slow": turns("rope.scaling.yarn_beta_slow", 1.0)?,
                "attention_factor": attention_factor * magnitude,
                "original_max_position_embeddings": original,
            })
        }
        (None, kind) if kind != Some("none") && factor != 1.0 && follows(Scaling::Factor) => {
            json!({ "rope_type": "linear", "factor": factor })
        }
        _ => json!({ "rope_type": "default" }),
    };
    Ok(parameters.as_object().cloned().unwrap_or_default())
}

/// The `rope_parameters` of the layers with a window. `default`: the base where the file does not give it.
pub(super) fn sliding_parameters(file: &Contents<'_>, head_dim: usize, default: f64) -> Result<Json> {
    let rotated = match file.count("rope.dimension_count_swa")? {
        Some(rotated) => rotated,
        None => file.count("rope.dimension_count")?.unwrap_or(head_dim).min(head_dim),
    };
    let theta = file.float("rope.freq_base_swa")?.unwrap_or(default);
    let share = share(rotated, head_dim);
    Ok(json!({ "rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share }))
}

/// The share `rotated` / `head_dim`, such that its product with `head_dim` is not below `rotated`.
fn share(rotated: usize, head_dim: usize) -> f64 {
    let share = rotated as f64 / head_dim as f64;
    if share * (head_dim as f64) < rotated as f64 { share.next_up() } else { share }
}
