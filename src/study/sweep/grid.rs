//! The cells of a sweep: the combinations of its options, their names, and the combinations that would say nothing new.

use std::collections::BTreeSet;

use super::super::checkpoint_run::CheckpointRun;
use crate::pipeline::Treatment;
use crate::quant::{Alpha, GroupSize, Method, QuantizeOptions};
use crate::report::Sizes;
use crate::{Checkpoint, Result};

/// The values of each option that a sweep varies.
#[derive(Debug, Clone)]
pub struct Axes {
    /// Base quantizers.
    pub methods: Vec<Method>,
    /// Bits per weight.
    pub bits: Vec<u32>,
    /// Inputs per grid.
    pub group_sizes: Vec<GroupSize>,
    /// Propagation strengths.
    pub alphas: Vec<Alpha>,
    /// Seeds of the draw of calibration windows.
    pub seeds: Vec<u64>,
}

/// A value of each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// Base quantizer.
    pub method: Method,
    /// Bits per weight.
    pub bits: u32,
    /// Inputs per grid.
    pub group_size: GroupSize,
    /// Propagation strength.
    pub alpha: Alpha,
    /// Seed of the draw of calibration windows.
    pub seed: u64,
}

/// One combination.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The name under which its result is kept.
    pub name: String,
    /// Tells it from the other cells, in words.
    pub label: String,
    /// All options of its run.
    pub options: QuantizeOptions,
    /// Inputs per grid, `None` for one grid per row.
    pub group_size: Option<usize>,
    /// Sizes of a checkpoint made with these options.
    pub sizes: Sizes,
}

/// All combinations, in the order of the table.
#[derive(Debug, Default)]
pub struct Grid {
    /// The cells to run; none if an axis has no values.
    pub cells: Vec<Cell>,
    /// A sentence for each combination that is left out.
    pub skipped: Vec<String>,
}

impl Axes {
    /// Every combination; the seed varies fastest, then α, the method, the group size, the bits.
    fn variants(&self) -> Vec<Variant> {
        let mut variants = Vec::new();
        for &bits in &self.bits {
            for &group_size in &self.group_sizes {
                for &method in &self.methods {
                    for &alpha in &self.alphas {
                        let variant = |&seed| Variant { method, bits, group_size, alpha, seed };
                        variants.extend(self.seeds.iter().map(variant));
                    }
                }
            }
        }
        variants
    }
}

impl Grid {
    /// The cells of `axes` for `model`. `options_of` completes the options of a variant.
    ///
    /// Errors: `Error::Input` naming an option that the model or the checkpoint format does not allow.
    pub async fn new(
        model: &Checkpoint,
        axes: &Axes,
        options_of: impl Fn(&Variant) -> QuantizeOptions,
    ) -> Result<Self> {
        let (mut grid, mut names) = (Self::default(), BTreeSet::new());
        for variant in axes.variants() {
            let options = options_of(&variant);
            let treatment = Treatment::new(&options, model.config());
            treatment.validate()?;
            let name = name(treatment);
            let label = label(treatment, &axes.seeds);
            if !treatment.needs_calibration() && variant.seed != axes.seeds[0] {
                let skipped =
                    format!("{label}: without correction rtn reads no calibration text, so seeds do not matter");
                grid.skipped.push(skipped);
            } else if !names.insert(name.clone()) {
                grid.skipped.push(format!("{label}: asked for twice"));
            } else {
                let group_size = treatment.group_size();
                let sizes = CheckpointRun::new(model, &options).await?.sizes();
                grid.cells.push(Cell { name, label, options, group_size, sizes });
            }
        }
        Ok(grid)
    }
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
