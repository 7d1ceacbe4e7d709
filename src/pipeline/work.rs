//! Counts the floating-point operations of a run before it starts. `study::forecast` and the benchmark of the command
//! line estimate times and rates from the counts.

use std::collections::BTreeMap;

use super::Treatment;
use crate::family::ModelConfig;
use crate::quant::methods::LinearExtent;
use crate::quant::{Alpha, QuantizeOptions};
use crate::record::Phase;

/// The floating-point operations of a run per phase, where a multiplication and an addition count as two. Terms of less
/// than n² per token or row are left out. The output matrix is not counted.
///
/// For T tokens and a group of linear layers `[mᵢ, n]`, both streams together take 4·T·Σmᵢ·n, H takes T·n² (it is
/// symmetric) and D takes 2·T·n² (algorithms.md §1 and §2).
pub fn work(config: &ModelConfig, options: &QuantizeOptions) -> BTreeMap<Phase, f64> {
    let mut sums = BTreeMap::new();
    let mut add = |phase, operations: f64| *sums.entry(phase).or_default() += operations;
    let tokens = (options.samples * options.seq_len) as f64;
    let treatment = Treatment::new(options, config);
    let group_size = treatment.group_size().map(|columns| columns as f64);
    let quantizer = options.method.quantizer();
    for (layer, block) in config.blocks.iter().enumerate() {
        // The factor 2 counts both streams.
        add(Phase::Forward, 2.0 * tokens * block.work_between_linears(options.seq_len));
        for group in block.groups() {
            let n = group[0].columns as f64;
            let rows: f64 = group.iter().map(|linear| linear.rows as f64).sum();
            add(Phase::Forward, 4.0 * tokens * rows * n);
            if options.blocks.is_some_and(|blocks| layer >= blocks) {
                continue;
            }
            let quantized: Vec<(f64, Alpha)> = group
                .iter()
                .map(|linear| linear.at(layer))
                .filter(|spec| treatment.bits_of(spec).is_some())
                .map(|spec| (spec.rows as f64, options.alpha.of(&spec.name)))
                .collect();
            let correlate = quantized.iter().any(|(_, alpha)| *alpha != Alpha::Off);
            if quantized.is_empty() || !correlate && quantizer.needs().hessian.is_none() {
                continue;
            }
            add(Phase::Statistics, tokens * n * n * if correlate { 3.0 } else { 1.0 });
            let auto = quantized.iter().any(|(_, alpha)| *alpha == Alpha::Auto);
            if correlate {
                add(Phase::Correction, n * n * n / 3.0 * if auto { 2.0 } else { 1.0 });
            }
            add(Phase::Rounding, quantizer.preparation_work(n));
            for (m, alpha) in quantized {
                let product = 2.0 * m * n * n;
                let held_out = options.held_out() > 0;
                let corrections = match alpha {
                    Alpha::Off => 0.0,
                    Alpha::Fixed(_) => 1.0,
                    Alpha::Auto => 2.0,
                };
                // A correction is W·D and two triangular solves, each half as much work as a product. A measurement on
                // held-out tokens is W·D there, and Δ·H for α*.
                let measured = if held_out && alpha == Alpha::Auto { 1.0 } else { 0.0 };
                add(Phase::Correction, product * 2.0 * (corrections + measured));
                let roundings = 1.0 + measured;
                let extent = LinearExtent { rows: m, columns: n, group_size: group_size.unwrap_or(n) };
                let work = quantizer.linear_work(options, extent);
                add(Phase::Rounding, roundings * work.rounding + 2.0 * measured * product);
                add(Phase::Rounding, work.search);
            }
        }
    }
    sums
}
