//! A document as one HTML page: plots as SVG, tables, and the document itself as JSON.
//!
//! The page needs no other file. It has no script, and its policy forbids every request.

mod bars;
mod growth;
mod layers;
mod numbers;
mod options;
mod summary;
mod table;

use std::collections::HashMap;

use super::document::EMBEDDED;
use super::escaped::Escaped;
use super::plots::{Ink, SERIES};
use super::{Document, Run};
use crate::Result;
use crate::error::{Names, Setting};

const STYLE: &str = include_str!("html/page.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// What all sections share: the runs, their labels, and which runs have curves.
struct Page<'a> {
    runs: &'a [Run],
    /// One label per run; no two are the same.
    labels: Vec<String>,
    /// Indices of the runs that have curves; at most [`SERIES`].
    drawn: Vec<usize>,
}

impl<'a> Page<'a> {
    fn new(runs: &'a [Run]) -> Self {
        let mut drawn: Vec<usize> = (0..runs.len()).filter(|&run| !runs[run].report.blocks.is_empty()).collect();
        if drawn.len() > SERIES {
            drawn.sort_by(|&a, &b| runs[a].report.last_error().total_cmp(&runs[b].report.last_error()));
            drawn.truncate(SERIES);
            drawn.sort_unstable();
        }
        Self { runs, labels: labels(runs), drawn }
    }

    fn run(&self, index: usize) -> (&'a Run, Escaped<'_>) {
        (&self.runs[index], Escaped(&self.labels[index]))
    }

    /// The runs that have curves, with their labels and the ink of their curves.
    fn drawn(&self) -> impl Iterator<Item = (&'a Run, Escaped<'_>, Ink)> {
        self.drawn.iter().enumerate().map(|(position, &index)| {
            let (run, label) = self.run(index);
            (run, label, Ink::Series(position))
        })
    }

    /// A paragraph that says which runs have curves; empty if all have.
    fn selection(&self) -> String {
        let (all, drawn) = (self.runs.len(), self.drawn.len());
        if drawn == all || drawn < SERIES {
            return String::new();
        }
        format!("<p>Of {all} runs, the {drawn} with the lowest error after the last block have curves here.</p>\n")
    }
}

/// The runs' own labels. A run without a label is numbered, and so are runs with the same label.
fn labels(runs: &[Run]) -> Vec<String> {
    if let [run] = runs
        && run.label.is_empty()
    {
        return vec!["quantized model".to_string()];
    }
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for run in runs {
        *counts.entry(&run.label).or_default() += 1;
    }
    let label = |(index, run): (usize, &Run)| match run.label.as_str() {
        "" => format!("run {}", index + 1),
        label if counts[label] > 1 => format!("{label} ({})", index + 1),
        label => label.to_string(),
    };
    runs.iter().enumerate().map(label).collect()
}

/// The page of a document. At most twelve runs have curves. `names`: those of the reader's front end.
///
/// Errors: `Error::Shape` if a plot cannot be drawn, which is a bug.
pub fn html(document: &Document, names: &dyn Names) -> Result<String> {
    let page = Page::new(&document.runs);
    let sections = [
        summary::section(&page),
        summary::warnings(&page),
        growth::section(&page)?,
        layers::section(&page)?,
        bars::perplexities(&page)?,
        bars::sizes(&page)?,
        bars::times(&page)?,
        options::section(&page),
    ];
    let title = Escaped(&document.title);
    let lead = summary::lead(&page);
    let (version, command) = (Escaped(&document.aquatint), Escaped(&document.command));
    let record = Escaped(names.name(Setting::Json));
    let body = sections.concat();
    let data = data(document);
    Ok(format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="aquatint {version}">
<title>{title} – aquatint</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
<header>
<p class="kind">aquatint {command}</p>
<h1>{title}</h1>
<p class="lead">{lead}</p>
</header>
<main>
{body}</main>
<footer>
<p>Written by aquatint {version}. The figures behind this page are in it as JSON:
<code>aquatint report</code> reads the page as it reads the files that <code>{record}</code> writes, and compares several.</p>
</footer>
{EMBEDDED}{data}</script>
</body>
</html>
"#
    ))
}

/// The document as JSON without any `<`, which could end the element around it. Only strings have one, and there it is escaped.
fn data(document: &Document) -> String {
    let text = serde_json::to_string(document).expect("the keys of a document are words");
    text.replace('<', "\\u003c")
}

/// A section with a heading; empty if `body` is.
fn section(heading: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{heading}</h2>\n{body}</section>\n")
}

/// A legend of curves; with the class "legend parts", of the parts of a bar. Entries: ink, name, value.
fn legend<'a>(class: &str, entries: impl IntoIterator<Item = (Ink, Escaped<'a>, String)>) -> String {
    let entry = |(ink, label, value): (Ink, Escaped<'_>, String)| {
        let class = ink.class();
        let swatch = format!(
            "<svg class=\"swatch\" viewBox=\"0 0 340 100\" aria-hidden=\"true\"><path class=\"stroke {class}\" \
             stroke-width=\"20\" d=\"M0 50H340\"/><circle class=\"fill {class}\" cx=\"170\" cy=\"50\" r=\"32\"/></svg>"
        );
        format!("<li>{swatch}<span>{label}</span><span class=\"value\">{}</span></li>\n", Escaped(&value))
    };
    let entries: String = entries.into_iter().map(entry).collect();
    format!("<ul class=\"{class}\">\n{entries}</ul>\n")
}
