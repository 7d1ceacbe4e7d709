//! Computes the tables of rotary angles (Su et al., arXiv 2104.09864), with the scalings of long-context checkpoints.
//! `network` uploads them, and the `rope` op reads them.

use std::f64::consts::TAU;

use crate::family::{Growth, Rope, RopeScaling};

/// Computes cos and sin of the angles of every position: `[positions, rotated]`. A row holds the cosines of the
/// rotated/2 angles, then their sines. Both carry the attention factor of the scaling, and the growth of the position.
///
/// LongRoPE has one set of frequencies for short texts and one for long ones. The length of the table decides here, so
/// that a text has the same angles from its first token to its last one. vLLM decides in the same way by its longest
/// context; transformers decides by the length of the text so far.
pub fn table(rope: &Rope, positions: usize) -> Vec<f32> {
    let frequencies = frequencies(rope, positions);
    let mut table = Vec::with_capacity(positions * rope.rotated);
    for position in 0..positions {
        let angle = |frequency: &f64| position as f64 * frequency;
        let size = attention_factor(&rope.scaling) * rope.growth.map_or(1.0, |growth| grown(growth, position));
        table.extend(frequencies.iter().map(|f| (size * angle(f).cos()) as f32));
        table.extend(frequencies.iter().map(|f| (size * angle(f).sin()) as f32));
    }
    table
}

/// The factor by which a query at `position` is longer than at the start of the text.
fn grown(growth: Growth, position: usize) -> f64 {
    1.0 + growth.beta * ((position / growth.original_max_position_embeddings) as f64).ln_1p()
}

/// The factor of cosines and sines.
fn attention_factor(scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => attention_factor,
        _ => 1.0,
    }
}

/// The frequency of each of the rotated/2 pairs of columns, in radians per position. `positions`: length of the table.
fn frequencies(rope: &Rope, positions: usize) -> Vec<f64> {
    let plain = (0..rope.rotated / 2).map(|i| rope.theta.powf(-2.0 * i as f64 / rope.rotated as f64));
    match &rope.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let kept = |frequency: f64| {
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
            };
            plain.map(|frequency| mixture(frequency, factor, kept(frequency))).collect()
        }
        &RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } => {
            let original = original_max_position_embeddings as f64;
            // The index of the pair that turns `turns` times in the original context.
            let index = |turns: f64| rope.rotated as f64 * (original / (turns * TAU)).ln() / (2.0 * rope.theta.ln());
            let (first, last) = (index(beta_fast), index(beta_slow));
            let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, last) = (first.max(0.0), last.min(rope.rotated as f64 - 1.0));
            let width = if first == last { 0.001 } else { last - first };
            let kept = |i: usize| 1.0 - ((i as f64 - first) / width).clamp(0.0, 1.0);
            plain.enumerate().map(|(i, frequency)| mixture(frequency, factor, kept(i))).collect()
        }
        RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
            let divisors = if positions > *original_max_position_embeddings { long_factor } else { short_factor };
            plain.zip(divisors).map(|(frequency, divisor)| frequency / divisor).collect()
        }
        &RopeScaling::Proportional { turning, factor } => {
            plain.enumerate().map(|(i, frequency)| if 2 * i < turning { frequency / factor } else { 0.0 }).collect()
        }
    }
}

/// A mixture of a frequency and the one that is stretched by `factor`. `kept` is 0 for a wave that turns so rarely in
/// the original context that it is stretched, and 1 for a wave that stays as it is.
fn mixture(frequency: f64, factor: f64, kept: f64) -> f64 {
    (1.0 - kept) * frequency / factor + kept * frequency
}
