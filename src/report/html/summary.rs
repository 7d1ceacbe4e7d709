//! The top of the page: a sentence, a table of the main figures, and warnings.

use std::collections::BTreeSet;

use super::bars::Task;
use super::numbers::{self, significant};
use super::table::Table;
use super::{Escaped, Page};
use crate::record::LayerReport;
use crate::report::Run;

/// Up to this many runs are columns of the table; more are rows.
const SIDE_BY_SIDE: usize = 3;
/// How many layers a warning names.
const NAMED: usize = 6;

/// The result in a sentence.
pub fn lead(page: &Page<'_>) -> String {
    let error = |run: &Run| numbers::percent(run.report.last_error(), 1);
    let blocks = |run: &Run| run.report.blocks.len();
    match page.runs {
        [] => "No runs.".to_string(),
        [run] if blocks(run) == 0 => "No block was measured.".to_string(),
        [run] => format!(
            "After the last of {} blocks the hidden states are {} away from the original model’s.",
            blocks(run),
            error(run)
        ),
        runs => {
            let last = |run: usize| runs[run].report.last_error();
            let measured = (0..runs.len()).filter(|&run| blocks(&runs[run]) > 0);
            let best = measured.min_by(|&a, &b| last(a).total_cmp(&last(b)));
            let Some((run, label)) = best.map(|best| page.run(best)) else {
                return "No block was measured.".to_string();
            };
            format!("The least error of the hidden states after the last block is {}, of <em>{label}</em>.", error(run))
        }
    }
}

/// The section of the main figures of every run.
pub fn section(page: &Page<'_>) -> String {
    let mut columns = columns(page);
    let mut shared = String::new();
    if page.runs.len() > SIDE_BY_SIDE {
        // A table of many runs has no room for columns that are the same in all of them.
        let alike = |(_, cells): &(String, Vec<String>)| cells.windows(2).all(|pair| pair[0] == pair[1]);
        let alike: Vec<_> = columns.extract_if(.., |column| alike(column)).collect();
        let alike: Vec<String> =
            alike.iter().map(|(name, cells)| format!("{}: {}", Escaped(name), Escaped(&cells[0]))).collect();
        if !alike.is_empty() {
            shared = format!("<p>The same in all runs: {}.</p>\n", alike.join("; "));
        }
    }
    let table = Table {
        head: std::iter::once("run".to_string()).chain(columns.iter().map(|(name, _)| name.clone())).collect(),
        rows: page
            .labels
            .iter()
            .enumerate()
            .map(|(run, label)| {
                std::iter::once(label.clone()).chain(columns.iter().map(|(_, cells)| cells[run].clone())).collect()
            })
            .collect(),
    };
    let body = match page.runs.len() {
        0 => String::new(),
        1 => facts(&columns),
        2..=SIDE_BY_SIDE => table.transposed().html("summary"),
        _ => shared + &table.html("summary"),
    };
    super::section("Summary", &body)
}

/// The figures of one run as a list.
fn facts(columns: &[(String, Vec<String>)]) -> String {
    let fact = |(name, cells): &(String, Vec<String>)| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>\n", Escaped(name), Escaped(&cells[0]))
    };
    let facts: String = columns.iter().map(fact).collect();
    format!("<dl class=\"facts\">\n{facts}</dl>\n")
}

/// The names of the quantities, each with a cell per run. Quantities that no run has are left out.
fn columns(page: &Page<'_>) -> Vec<(String, Vec<String>)> {
    let mut columns: Vec<(String, Vec<Option<String>>)> = Vec::new();
    let mut column = |name: String, cell: &dyn Fn(&Run) -> Option<String>| {
        columns.push((name, page.runs.iter().map(cell).collect()));
    };
    let models: BTreeSet<&str> = page.runs.iter().map(|run| run.model.as_str()).collect();
    let named = models.len() > 1 || page.runs.len() == 1;
    column("model".into(), &|run| named.then(|| numbers::file_name(&run.model).to_string()).filter(|n| !n.is_empty()));
    column("method".into(), &|run| Some(run.report.options.method.name().to_uppercase()));
    column("bits".into(), &|run| Some(run.report.options.bits.to_string()));
    column("grids".into(), &|run| Some(numbers::group_size(run.report.group_size)));
    column("α".into(), &|run| Some(numbers::policy(&run.report.options.alpha)));
    column("calibration tokens".into(), &|run| {
        let options = &run.report.options;
        Some(format!("{} × {}", options.samples, options.seq_len))
    });
    column("mean α".into(), &|run| {
        let layers = &run.report.layers;
        let mean = layers.iter().map(|layer| layer.alpha).sum::<f64>() / layers.len() as f64;
        (!layers.is_empty()).then(|| format!("{mean:.3}"))
    });
    column("error after the last block".into(), &|run| run.report.blocks.last().map(|block| significant(block.error)));
    let tasks = Task::all(page);
    for &task in &tasks {
        column(format!("perplexity, {}", task.name()), &|run| {
            task.result(run).map(|r| numbers::perplexity(r.perplexity))
        });
        let beside = if tasks.len() > 1 { format!(", {}", numbers::file_name(task.text)) } else { String::new() };
        column(format!("perplexity of the original{beside}"), &|run| {
            task.result(run)?.original_perplexity.map(numbers::perplexity)
        });
        column(format!("KL to the original, nats{beside}"), &|run| task.result(run)?.kl.map(significant));
        column(format!("same first choice{beside}"), &|run| {
            task.result(run)?.top1_agreement.map(|share| numbers::percent(share, 2))
        });
    }
    column("size".into(), &|run| run.sizes.map(|sizes| numbers::bytes(sizes.quantized_bytes)));
    column("original size".into(), &|run| run.sizes.map(|sizes| numbers::bytes(sizes.original_bytes)));
    column("bits per weight".into(), &|run| run.sizes?.bits_per_weight.map(|bits| format!("{bits:.2}")));
    column("guarded layers".into(), &|run| {
        let (guarded, all) = (run.report.guarded().count(), run.report.layers.len());
        Some(format!("{guarded} of {all}"))
    });
    column("time".into(), &|run| Some(run.report.total_seconds).filter(|&seconds| seconds > 0.0).map(numbers::seconds));
    let known = columns.into_iter().filter(|(_, cells)| cells.iter().any(Option::is_some));
    let filled = |cells: Vec<Option<String>>| cells.into_iter().map(|cell| cell.unwrap_or("–".to_string())).collect();
    known.map(|(name, cells)| (name, filled(cells))).collect()
}

/// The section of warnings: guarded layers and raised dampings.
pub fn warnings(page: &Page<'_>) -> String {
    let lists: Vec<String> = (0..page.runs.len()).map(|run| run_warnings(page, run)).collect();
    let warned = lists.iter().filter(|list| !list.is_empty()).count();
    let list = format!("<ul class=\"warnings\">\n{}</ul>\n", lists.concat());
    let body = match warned {
        0 => "<p>None: no layer was guarded, no ridge raised.</p>\n".to_string(),
        1..=SIDE_BY_SIDE => list,
        _ => format!("<details>\n<summary>On {warned} of {} runs</summary>\n{list}</details>\n", lists.len()),
    };
    super::section("Warnings", &body)
}

/// Whether a warning applies to a layer.
type Applies<'a> = &'a dyn Fn(&LayerReport) -> bool;

fn run_warnings(page: &Page<'_>, run: usize) -> String {
    let (run, label) = page.run(run);
    let prefix = if page.runs.len() > 1 { format!("<strong>{label}</strong>: ") } else { String::new() };
    let (options, layers) = (&run.report.options, &run.report.layers);
    let raised = |found: f64, asked: f64| found > asked * (1.0 + 1e-9);
    let kinds: [(Applies<'_>, &str); 4] = [
        (&|layer| layer.guarded, "stored uncorrected, since the correction made it worse on held-out tokens"),
        (
            &|layer| raised(layer.correction_damping, options.correction_damping),
            "corrected with a greater ridge than asked for",
        ),
        (
            &|layer| layer.rounding_damping.is_some_and(|found| raised(found, options.rounding_damping)),
            "rounded with a greater ridge than asked for, as the factorisation failed",
        ),
        (
            &|layer| options.method.quantizer().scales_input() && layer.awq_ratio.is_none(),
            "rounded without scales of their inputs, since nothing before them can take the scales",
        ),
    ];
    let mut items = String::new();
    for (applies, what) in kinds {
        let those: Vec<&LayerReport> = layers.iter().filter(|layer| applies(layer)).collect();
        if !those.is_empty() {
            let (count, all) = (those.len(), layers.len());
            items += &format!("<li>{prefix}{count} of {all} layers {what}: {}</li>\n", names(&those));
        }
    }
    items
}

/// The names of the first layers, and how many more there are.
fn names(layers: &[&LayerReport]) -> String {
    let named = layers.iter().take(NAMED).map(|layer| format!("<code>{}</code>", Escaped(&layer.name)));
    let named = named.collect::<Vec<_>>().join(", ");
    match layers.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
