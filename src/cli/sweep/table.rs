//! The results of a sweep: a table for the terminal, and one for sweep.csv.

use std::collections::BTreeMap;

use aquatint::eval::tasks::TaskResult;
use aquatint::quant::QuantizeOptions;
use aquatint::report::Evaluation;
use aquatint::study::sweep::{Original, Row};
use comfy_table::{CellAlignment, Table, presets};

/// Prints a row per cell and, where there are several seeds, means over them.
pub fn print(rows: &[Row], original: &Original) {
    let measures = headings(original);
    let mut table = table(&["", "bits", "groups", "α", "seed"], &measures, &["last-block error", "seconds"]);
    let mut full = vec!["full precision".to_string(), String::new(), String::new(), String::new(), String::new()];
    full.extend(measured(&original.texts, &original.tasks).map(|value| format!("{value:.3}")));
    table.add_row(full);
    for row in rows {
        let mut cells = varied(&row.cell.options, row).to_vec();
        cells.push(row.cell.options.seed.to_string());
        cells.extend(results(row, measures.len()).map(|value| number(value, 3)));
        let report = row.finished.run.as_ref().map(|run| &run.report);
        cells.push(number(report.map(|report| report.last_error()), 4));
        cells.push(number(report.map(|report| report.total_seconds), 1));
        table.add_row(cells);
    }
    say!("{table}");
    for row in rows {
        if let Some(failure) = &row.finished.failure {
            say!("{}: {failure}", row.cell.label);
        }
    }
    means(rows, &measures);
}

/// A heading for each value of [`measured`].
fn headings(original: &Original) -> Vec<String> {
    let file = |path: &str| path.rsplit(['/', '\\']).next().unwrap_or_default().to_string();
    let text = |text: &Evaluation| match original.texts.len() {
        1 => "perplexity".to_string(),
        _ => format!("{} at {}", file(&text.text), text.seq_len),
    };
    let tasks = original.tasks.iter().map(|task| format!("{}, %", file(&task.task)));
    original.texts.iter().map(text).chain(tasks).collect()
}

/// Perplexities, then accuracies in percent.
fn measured(texts: &[Evaluation], tasks: &[TaskResult]) -> impl Iterator<Item = f64> {
    texts.iter().map(|text| text.perplexity).chain(tasks.iter().map(|task| 100.0 * task.accuracy))
}

/// Prints mean and standard deviation over the seeds, if there are several.
fn means(rows: &[Row], measures: &[String]) {
    let mut kinds: Vec<[String; 4]> = Vec::new();
    let mut values: BTreeMap<usize, Vec<Vec<f64>>> = BTreeMap::new();
    for row in rows {
        let kind = varied(&row.cell.options, row);
        let index = kinds.iter().position(|other| *other == kind).unwrap_or(kinds.len());
        if index == kinds.len() {
            kinds.push(kind);
        }
        let series = values.entry(index).or_insert_with(|| vec![Vec::new(); measures.len()]);
        for (series, value) in series.iter_mut().zip(results(row, measures.len())) {
            series.extend(value);
        }
    }
    if values.values().flatten().all(|series| series.len() < 2) {
        return;
    }
    let mut table = table(&["", "bits", "groups", "α", "seeds"], measures, &[]);
    for (index, series) in values {
        let mut cells = kinds[index].to_vec();
        cells.push(series.iter().map(Vec::len).min().unwrap_or(0).to_string());
        cells.extend(series.iter().map(|series| mean_and_deviation(series)));
        table.add_row(cells);
    }
    say!("\nmean ± standard deviation over seeds:\n{table}");
}

fn mean_and_deviation(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    match values.len() {
        0 => String::new(),
        1 => format!("{mean:.3}"),
        _ => {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
            format!("{mean:.3} ± {:.3}", variance.sqrt())
        }
    }
}

fn table(options: &[&str], texts: &[String], more: &[&str]) -> Table {
    let mut table = Table::new();
    let header = options.iter().map(|name| name.to_string());
    let header = header.chain(texts.iter().cloned()).chain(more.iter().map(|name| name.to_string()));
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Method, bits, groups and α.
fn varied(options: &QuantizeOptions, row: &Row) -> [String; 4] {
    let groups = row.cell.group_size.map_or("-1".to_string(), |size| size.to_string());
    [options.method.to_string(), options.bits.to_string(), groups, options.alpha.default.to_string()]
}

/// A value for each of `count` measures; `None` from the one at which the run failed.
fn results(row: &Row, count: usize) -> impl Iterator<Item = Option<f64>> {
    let texts = row.finished.run.as_ref().map_or(&[][..], |run| &run.evaluations);
    measured(texts, &row.finished.tasks).map(Some).chain(std::iter::repeat(None)).take(count)
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or(String::new(), |value| format!("{value:.digits$}"))
}

/// The lines of sweep.csv: one for each text or task of each cell, in the columns of [`COLUMNS`].
pub fn records(rows: &[Row], original: &Original) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for row in rows {
        let options = options(row);
        let failure = row.finished.failure.clone().unwrap_or_default();
        for (index, text) in original.texts.iter().enumerate() {
            let found = row.finished.run.as_ref().and_then(|run| run.evaluations.get(index));
            let numbers = [found.map(|found| found.perplexity), Some(text.perplexity), None, None, None, None, None];
            let sizes = [text.text.clone(), text.seq_len.to_string(), text.windows.to_string(), String::new()];
            lines.push([&options[..], &sizes, &numbers.map(exact), std::slice::from_ref(&failure)].concat());
        }
        for (index, task) in original.tasks.iter().enumerate() {
            let found = row.finished.tasks.get(index);
            let numbers = [
                None,
                None,
                found.map(|found| found.accuracy),
                found.map(|found| found.accuracy_error),
                found.map(|found| found.normalised_accuracy),
                found.map(|found| found.normalised_error),
                Some(task.accuracy),
            ];
            let sizes = [task.task.clone(), String::new(), String::new(), task.questions.to_string()];
            lines.push([&options[..], &sizes, &numbers.map(exact), std::slice::from_ref(&failure)].concat());
        }
    }
    lines
}

fn exact(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// The names of the columns of sweep.csv.
pub const COLUMNS: [&str; 36] = [
    "method",
    "bits",
    "group_size",
    "alpha",
    "seed",
    "symmetry",
    "grid",
    "descent_passes",
    "rotation",
    "activation_order",
    "alpha_overrides",
    "alpha_shrinkage",
    "correction_damping",
    "rounding_damping",
    "samples",
    "seq_len",
    "sampling",
    "device",
    "quantized_bytes",
    "bits_per_weight",
    "mean_alpha",
    "guarded_layers",
    "last_block_error",
    "seconds",
    "text",
    "eval_seq_len",
    "eval_windows",
    "eval_questions",
    "perplexity",
    "original_perplexity",
    "accuracy",
    "accuracy_error",
    "normalised_accuracy",
    "normalised_error",
    "original_accuracy",
    "failure",
];

/// The values of the columns before those of the text.
fn options(row: &Row) -> Vec<String> {
    let options = &row.cell.options;
    let [method, bits, group_size, alpha] = varied(options, row);
    let report = row.finished.run.as_ref().map(|run| &run.report);
    let overrides = options.alpha.overrides.iter();
    let overrides: Vec<String> = overrides.map(|(pattern, a)| format!("{pattern}={}", *a)).collect();
    vec![
        method,
        bits,
        group_size,
        alpha,
        options.seed.to_string(),
        format!("{:?}", options.symmetry).to_lowercase(),
        format!("{:?}", options.grid).to_lowercase(),
        options.descent_passes.to_string(),
        format!("{:?}", options.rotation).to_lowercase(),
        format!("{:?}", options.activation_order).to_lowercase(),
        overrides.join(" "),
        options.alpha.shrinkage.to_string(),
        options.correction_damping.to_string(),
        options.rounding_damping.to_string(),
        options.samples.to_string(),
        options.seq_len.to_string(),
        format!("{:?}", options.sampling).to_lowercase(),
        report.map_or(String::new(), |report| report.device.clone()),
        row.cell.sizes.quantized_bytes.to_string(),
        exact(row.cell.sizes.bits_per_weight),
        exact(report.map(|report| {
            report.layers.iter().map(|layer| layer.alpha).sum::<f64>() / report.layers.len().max(1) as f64
        })),
        report.map_or(String::new(), |report| report.guarded().count().to_string()),
        exact(report.map(|report| report.last_error())),
        exact(report.map(|report| report.total_seconds)),
    ]
}
