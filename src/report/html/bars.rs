//! Perplexities, sizes and times as bars with their figures beside them.

use std::collections::BTreeSet;

use super::numbers;
use super::table::Table;
use super::{Escaped, Page, legend};
use crate::Result;
use crate::report::plots::{Ink, bar};
use crate::report::{Evaluation, Run};

/// A bar with its label and its figure. The parts of all bars have the same unit.
struct Bar<'a> {
    label: Escaped<'a>,
    parts: Vec<(f64, Ink)>,
    value: String,
}

fn bars(list: &[Bar<'_>]) -> Result<String> {
    let length = |bar: &Bar<'_>| bar.parts.iter().map(|(part, _)| part.max(0.0)).sum::<f64>();
    let longest = list.iter().map(length).fold(f64::MIN_POSITIVE, f64::max);
    let mut rows = String::new();
    for Bar { label, parts, value } in list {
        let shares: Vec<_> = parts.iter().map(|&(part, ink)| (part.max(0.0) / longest, ink)).collect();
        let value = Escaped(value);
        rows += &format!("<li><span>{label}</span>{}<span class=\"value\">{value}</span></li>\n", bar(&shares)?);
    }
    Ok(format!("<ul class=\"bars\">\n{rows}</ul>\n"))
}

/// A text in windows. Perplexities can be compared if they share it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Task<'a> {
    /// Name of the text.
    pub text: &'a str,
    windows: usize,
    seq_len: usize,
}

impl<'a> Task<'a> {
    fn of(evaluation: &'a Evaluation) -> Self {
        Self { text: &evaluation.text, windows: evaluation.windows, seq_len: evaluation.seq_len }
    }

    /// All tasks of a page, in order of appearance.
    pub fn all(page: &Page<'a>) -> Vec<Self> {
        let mut tasks = Vec::new();
        for task in page.runs.iter().flat_map(|run| &run.evaluations).map(Task::of) {
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
        tasks
    }

    /// The result of a run on this task.
    pub fn result(self, run: &Run) -> Option<&Evaluation> {
        run.evaluations.iter().find(|evaluation| Task::of(evaluation) == self)
    }

    /// The task in a few words.
    pub fn name(self) -> String {
        format!("{}, {} × {} tokens", numbers::file_name(self.text), self.windows, self.seq_len)
    }
}

/// The section of perplexities, text by text.
pub fn perplexities(page: &Page<'_>) -> Result<String> {
    let tasks = Task::all(page);
    if tasks.is_empty() {
        let body = "<p>The record has none; <code>aquatint eval</code> measures it.</p>\n";
        return Ok(super::section("Perplexity", body));
    }
    let mut body = String::new();
    for task in tasks {
        let results: Vec<_> =
            page.runs.iter().zip(&page.labels).filter_map(|(run, label)| Some((label, task.result(run)?))).collect();
        let originals = results.iter().filter_map(|(_, result)| result.original_perplexity);
        let distinct: BTreeSet<u64> = originals.clone().map(f64::to_bits).collect();
        // Runs of different models have different originals.
        let original = originals.clone().next().filter(|_| distinct.len() == 1);
        let original = original.map(|value| Bar {
            label: Escaped("original model"),
            parts: vec![(value, Ink::Reference)],
            value: numbers::perplexity(value),
        });
        let quantized = results.iter().map(|(label, result)| Bar {
            label: Escaped(label),
            parts: vec![(result.perplexity, Ink::Series(0))],
            value: numbers::perplexity(result.perplexity),
        });
        let list: Vec<Bar<'_>> = original.into_iter().chain(quantized).collect();
        body += &format!("<h3>{}</h3>\n{}", Escaped(&task.name()), bars(&list)?);
        if originals.count() == 0 {
            body += "<p>The original model was not measured on this text.</p>\n";
        }
    }
    Ok(super::section("Perplexity", &body))
}

/// The section of checkpoint sizes.
pub fn sizes(page: &Page<'_>) -> Result<String> {
    let known: Vec<_> =
        page.runs.iter().zip(&page.labels).filter_map(|(run, label)| Some((label, run.sizes?))).collect();
    let Some((_, first)) = known.first() else {
        return Ok(super::section("Size", "<p>The record has none.</p>\n"));
    };
    let original = known.iter().all(|(_, sizes)| sizes.original_bytes == first.original_bytes).then(|| Bar {
        label: Escaped("original model"),
        parts: vec![(first.original_bytes as f64, Ink::Reference)],
        value: numbers::bytes(first.original_bytes),
    });
    let quantized = known.iter().map(|(label, sizes)| {
        let mut value = numbers::bytes(sizes.quantized_bytes);
        if let Some(bits) = sizes.bits_per_weight {
            value += &format!(", {bits:.2} bits per quantized weight");
        }
        Bar { label: Escaped(label), parts: vec![(sizes.quantized_bytes as f64, Ink::Series(0))], value }
    });
    let list: Vec<Bar<'_>> = original.into_iter().chain(quantized).collect();
    Ok(super::section("Size", &format!("<p>All files of a checkpoint.</p>\n{}", bars(&list)?)))
}

/// The section of seconds by phase.
pub fn times(page: &Page<'_>) -> Result<String> {
    let timed: Vec<_> = page.runs.iter().zip(&page.labels).filter(|(run, _)| run.report.total_seconds > 0.0).collect();
    if timed.is_empty() {
        return Ok(super::section("Time", "<p>The record has none.</p>\n"));
    }
    let phases: BTreeSet<_> = timed.iter().flat_map(|(run, _)| run.report.seconds.keys().copied()).collect();
    let phases: Vec<_> = phases.into_iter().enumerate().map(|(at, phase)| (phase, Ink::Series(at))).collect();
    let list: Vec<Bar<'_>> = timed
        .iter()
        .map(|(run, label)| {
            let report = &run.report;
            let spent = |phase| report.seconds.get(phase).copied().unwrap_or(0.0);
            let parts = phases.iter().map(|(phase, ink)| (spent(phase), *ink));
            let other = report.total_seconds - report.seconds.values().sum::<f64>();
            let parts = parts.chain([(other, Ink::Reference)]).collect();
            Bar { label: Escaped(label), parts, value: numbers::seconds(report.total_seconds) }
        })
        .collect();
    let names = phases.iter().map(|(phase, ink)| (*ink, Escaped(phase.label()), String::new()));
    let rest = [(Ink::Reference, Escaped("anything else"), String::new())];
    let body = legend("legend parts", names.chain(rest));
    let seconds = |run: &Run, phase| run.report.seconds.get(phase).map_or("–".to_string(), |s| format!("{s:.2}"));
    let row = |(run, label): &(&Run, &String)| {
        let phases = phases.iter().map(|(phase, _)| seconds(run, phase));
        let total = format!("{:.2}", run.report.total_seconds);
        std::iter::once(label.to_string()).chain(phases).chain([total]).collect()
    };
    let head = phases.iter().map(|(phase, _)| phase.label());
    let head = std::iter::once("seconds").chain(head).chain(["in all"]).map(String::from).collect();
    let table = Table { head, rows: timed.iter().map(row).collect() };
    let figures = table.html("seconds by phase");
    let figures = format!("<details class=\"figures\">\n<summary>In figures</summary>\n{figures}</details>\n");
    Ok(super::section("Time by phase", &(body + &bars(&list)? + &figures)))
}
