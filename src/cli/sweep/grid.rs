//! The cells of a sweep: which combinations of options there are, what they are called, and which say nothing new.

use std::collections::BTreeSet;

use aquatint::checkpoint::{DEFAULT_SHARD_LIMIT, WritePlan};
use aquatint::pipeline::Treatment;
use aquatint::quant::QuantizeOptions;
use aquatint::report::Sizes;
use aquatint::{Checkpoint, Error, Result};

use super::super::args::{SweepArgs, Variant};

/// One combination.
#[derive(Debug)]
pub struct Cell {
    /// Its file's name, without ending.
    pub name: String,
    /// What tells it from the others.
    pub label: String,
    pub options: QuantizeOptions,
    /// Inputs per grid, `None` for per channel.
    pub group_size: Option<usize>,
    /// Of a checkpoint made with these options.
    pub sizes: Sizes,
}

/// All of them, in the order of the table.
#[derive(Debug, Default)]
pub struct Grid {
    pub cells: Vec<Cell>,
    /// A sentence for each combination that is left out.
    pub skipped: Vec<String>,
}

impl Grid {
    /// Errors: an option that the model or the checkpoint format does not allow.
    pub fn new(args: &SweepArgs, model: &Checkpoint) -> Result<Self> {
        let seeds = if args.seeds.is_empty() { vec![args.calibration.seed] } else { args.seeds.clone() };
        let (mut grid, mut names) = (Self::default(), BTreeSet::new());
        for variant in variants(args, &seeds) {
            let options = args.details.options(&variant, &args.calibration, model.config());
            let treatment = Treatment::new(&options, model.config());
            treatment.validate()?;
            let name = name(treatment);
            let label = label(treatment, &seeds);
            if !treatment.needs_calibration() && variant.seed != seeds[0] {
                let skipped =
                    format!("{label}: without correction rtn reads no calibration text, so seeds do not matter");
                grid.skipped.push(skipped);
            } else if !names.insert(name.clone()) {
                grid.skipped.push(format!("{label}: asked for twice"));
            } else {
                let group_size = treatment.group_size();
                let plan = WritePlan::new(model, treatment.format(), &treatment.layers(), DEFAULT_SHARD_LIMIT)?;
                let sizes = Sizes {
                    original_bytes: model.bytes(),
                    quantized_bytes: plan.bytes(),
                    bits_per_weight: Some(plan.bits_per_weight()),
                };
                grid.cells.push(Cell { name, label, options, group_size, sizes });
            }
        }
        if grid.cells.is_empty() {
            let remedy = "give --methods, --bits, --group-sizes and --alphas a value each, or leave them out";
            return Err(Error::input("the sweep", "no combination of options", "at least one", remedy));
        }
        Ok(grid)
    }
}

fn variants(args: &SweepArgs, seeds: &[u64]) -> Vec<Variant> {
    let mut variants = Vec::new();
    for &bits in &args.bits {
        for &group_size in &args.group_sizes {
            for &method in &args.methods {
                for &alpha in &args.alphas {
                    variants.extend(seeds.iter().map(|&seed| Variant { method, bits, group_size, alpha, seed }));
                }
            }
        }
    }
    variants
}

fn name(treatment: Treatment<'_>) -> String {
    let options = treatment.options;
    let groups = treatment.group_size().map_or("channel".to_string(), |size| format!("g{size}"));
    let (method, alpha) = (options.method, options.alpha.default);
    format!("{method}-{}bit-{groups}-{alpha}-seed{}", options.bits, options.seed)
}

fn label(treatment: Treatment<'_>, seeds: &[u64]) -> String {
    let options = treatment.options;
    let groups = treatment.group_size().map_or("per channel".to_string(), |size| format!("groups of {size}"));
    let seed = if seeds.len() > 1 { format!(", seed {}", options.seed) } else { String::new() };
    let (method, alpha) = (options.method, options.alpha.default);
    format!("{method}, {} bits, {groups}, α {alpha}{seed}", options.bits)
}
