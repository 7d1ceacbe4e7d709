//! How much a run has to compute, counted before it starts.

use std::collections::BTreeMap;

use crate::family::ModelConfig;
use crate::quant::awq::RATIOS;
use crate::quant::{Alpha, Method, QuantizeOptions};
use crate::record::Phase;

/// Range shrinkages that a grid search tries, and operations for one weight each, about.
const GRID_SEARCH: f64 = 80.0 * 8.0;

/// The floating-point operations of a run per phase, a multiplication and an addition being two. Terms of less than n² per token
/// or row are left out.
///
/// With T tokens and a group of linears `[mᵢ, n]`: the streams take 4·T·Σmᵢ·n, H takes T·n² and D 2·T·n² (algorithms.md §1 and §2).
pub fn work(config: &ModelConfig, options: &QuantizeOptions) -> BTreeMap<Phase, f64> {
    let mut sums = BTreeMap::new();
    let mut add = |phase, operations: f64| *sums.entry(phase).or_default() += operations;
    let tokens = (options.samples * options.seq_len) as f64;
    let grid_columns = options.grid_columns(config).map(|columns| columns as f64);
    for (layer, block) in config.blocks.iter().enumerate() {
        // In two streams.
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
                .filter(|spec| options.bits_of(&spec.name).is_some())
                .map(|spec| (spec.rows as f64, options.alpha.of(&spec.name)))
                .collect();
            let correlate = quantized.iter().any(|(_, alpha)| *alpha != Alpha::Off);
            if quantized.is_empty() || !correlate && options.method == Method::Rtn {
                continue;
            }
            add(Phase::Statistics, tokens * n * n * if correlate { 3.0 } else { 1.0 });
            let auto = quantized.iter().any(|(_, alpha)| *alpha == Alpha::Auto);
            if correlate {
                add(Phase::Correction, n * n * n / 3.0 * if auto { 2.0 } else { 1.0 });
            }
            if matches!(options.method, Method::Gptq | Method::Quip) {
                // The factor, and its inverse.
                add(Phase::Rounding, n * n * n);
            }
            for (m, alpha) in quantized {
                let product = 2.0 * m * n * n;
                let held_out = options.held_out() > 0;
                let corrections = match alpha {
                    Alpha::Off => 0.0,
                    Alpha::Fixed(_) => 1.0,
                    Alpha::Auto => 2.0,
                };
                // W·D and two triangular solves of half a product each; of what is held out W·D, and for α* Δ·H.
                let measured = if held_out && alpha == Alpha::Auto { 1.0 } else { 0.0 };
                add(Phase::Correction, product * 2.0 * (corrections + measured));
                let roundings = 1.0 + measured;
                let search = GRID_SEARCH * m * n;
                let rounding = match options.method {
                    Method::Rtn => search,
                    Method::Gptq => search + product * 0.5,
                    Method::Quip => product * 0.5,
                    Method::Awq => 20.0 * m * n * grid_columns.unwrap_or(n),
                };
                add(Phase::Rounding, roundings * rounding + 2.0 * measured * product);
                if options.method == Method::Gptq {
                    // For codes H·E, for scales H·E again and H·Q.
                    add(Phase::Rounding, 3.0 * product * options.descent_passes as f64);
                }
                if options.method == Method::Awq {
                    add(Phase::Rounding, RATIOS as f64 * product);
                }
            }
        }
    }
    sums
}
