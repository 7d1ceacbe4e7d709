//! The table of rotary angles (Su et al., arXiv 2104.09864), with the scalings of long-context checkpoints.

use std::f64::consts::TAU;

use crate::family::{Rope, RopeScaling};

/// cos and sin of every position: `[positions, rotated]`, the cosines of the rotated/2 angles first, then the sines.
pub fn table(rope: &Rope, positions: usize) -> Vec<f32> {
    let frequencies = frequencies(rope);
    let mut table = Vec::with_capacity(positions * rope.rotated);
    for position in 0..positions {
        let angle = |frequency: &f64| position as f64 * frequency;
        table.extend(frequencies.iter().map(|f| angle(f).cos() as f32));
        table.extend(frequencies.iter().map(|f| angle(f).sin() as f32));
    }
    table
}

/// Radians per position of each of the rotated/2 pairs.
fn frequencies(rope: &Rope) -> Vec<f64> {
    let theta = f64::from(rope.theta);
    let plain = (0..rope.rotated / 2).map(|i| theta.powf(-2.0 * i as f64 / rope.rotated as f64));
    plain.map(|frequency| scaled(&rope.scaling, frequency)).collect()
}

fn scaled(scaling: &RopeScaling, frequency: f64) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            let turns = original_max_position_embeddings as f64 * frequency / TAU;
            // 0 where a wave turns so rarely in the original context that it is stretched, 1 where it is kept.
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / f64::from(factor) + kept * frequency
        }
    }
}
