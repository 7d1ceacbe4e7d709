//! All options and versions: those that the runs share, and those in which they differ.

use serde_json::Value;

use super::numbers;
use super::table::Table;
use super::{Escaped, Page};
use crate::report::Run;

/// The section of options and versions.
pub fn section(page: &Page<'_>) -> String {
    let settings: Vec<Vec<(String, String)>> = page.runs.iter().map(settings).collect();
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in settings.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value = |run: &[(String, String)], name: &str| {
        let found = run.iter().find(|(other, _)| other == name);
        found.map_or("–".to_string(), |(_, value)| value.clone())
    };
    let same = |name: &str| settings.windows(2).all(|pair| value(&pair[0], name) == value(&pair[1], name));
    let (shared, apart): (Vec<&String>, Vec<&String>) = names.into_iter().partition(|name| same(name));
    let Some(first) = settings.first() else { return String::new() };
    let shared = Table {
        head: vec!["option".to_string(), "value".to_string()],
        rows: shared.into_iter().map(|name| vec![name.clone(), value(first, name)]).collect(),
    };
    let mut body = String::new();
    if !apart.is_empty() {
        let row = |(run, label): (&Vec<(String, String)>, &String)| {
            std::iter::once(label.clone()).chain(apart.iter().map(|name| value(run, name))).collect()
        };
        let table = Table {
            head: std::iter::once("run".to_string()).chain(apart.iter().map(|name| name.to_string())).collect(),
            rows: settings.iter().zip(&page.labels).map(row).collect(),
        };
        body += &format!("<h3>Different between the runs</h3>\n{}", table.html("options that differ"));
    }
    let heading = if settings.len() > 1 { "The same in all runs" } else { "All options and versions" };
    body += &format!(
        "<details class=\"options\">\n<summary>{}</summary>\n{}</details>\n",
        Escaped(heading),
        shared.html("options")
    );
    super::section("Options and versions", &body)
}

/// Names and values of a run's facts and options. An option with several fields becomes one entry per field.
fn settings(run: &Run) -> Vec<(String, String)> {
    let report = &run.report;
    let known = |text: &str| if text.is_empty() { "not known".to_string() } else { text.to_string() };
    let own = [
        ("aquatint", known(&report.aquatint)),
        ("model", known(&run.model)),
        ("device", known(&report.device)),
        ("calibration tokens", report.tokens.to_string()),
        ("of which held out", report.held_out_tokens.to_string()),
        ("inputs per grid", report.group_size.map_or("all of a row".to_string(), |size| size.to_string())),
    ];
    let mut settings: Vec<(String, String)> = own.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    let options = serde_json::to_value(&report.options).expect("the keys of options are words");
    for (name, value) in options.as_object().into_iter().flatten() {
        let name = name.replace('_', " ");
        match value {
            // An object with one field is a tagged value.
            Value::Object(fields) if fields.len() > 1 => {
                let inner = fields.iter().map(|(key, value)| (format!("{name}: {key}"), numbers::value(value)));
                settings.extend(inner);
            }
            _ => settings.push((name, numbers::value(value))),
        }
    }
    settings
}
