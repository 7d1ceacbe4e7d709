//! Computes the tables of rotary angles (Su et al., arXiv 2104.09864), with the scalings of long-context checkpoints.
//! `network` uploads them, and the `rope` op reads them.

use std::f64::consts::TAU;

use crate::family::{Rope, RopeScaling};

/// Computes cos and sin of the angles of every position: `[positions, rotated]`. A row holds the cosines of the
/// rotated/2 angles, then their sines.
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

/// The frequency of each of the rotated/2 pairs of columns, in radians per position.
fn frequencies(rope: &Rope) -> Vec<f64> {
    let theta = f64::from(rope.theta);
    let plain = (0..rope.rotated / 2).map(|i| theta.powf(-2.0 * i as f64 / rope.rotated as f64));
    plain.map(|frequency| scaled(&rope.scaling, frequency)).collect()
}

/// Applies the scaling of a long-context checkpoint to a frequency, in radians per position.
fn scaled(scaling: &RopeScaling, frequency: f64) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            let turns = original_max_position_embeddings as f64 * frequency / TAU;
            // 0 for a wave that turns so rarely in the original context that it is stretched, 1 for a wave that is
            // kept, and between them a mixture.
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / f64::from(factor) + kept * frequency
        }
    }
}
