//! `--profile`: a file in the Chrome trace format (chrome://tracing, ui.perfetto.dev) that shows what ran when, and a table of kernels.

use std::collections::BTreeMap;
use std::path::Path;

use aquatint::Result;
use aquatint::device::KernelTime;
use aquatint::observer::{Event, Observer};
use aquatint::record::Phase;
use aquatint::study::files::write_json;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::console::Console;

/// A console that also records when each phase began.
pub struct Traced {
    console: Console,
    /// Seconds and the name of what began then; an empty name ends what was before.
    marks: Vec<(f64, String)>,
}

impl Traced {
    pub fn new(console: Console) -> Self {
        Self { console, marks: Vec::new() }
    }

    fn mark(&mut self, name: String) {
        self.marks.push((self.console.seconds(), name));
    }
}

impl Observer for Traced {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Phase { group, phase } => {
                self.mark(format!("{}: block {}, {}", phase.label(), group.block + 1, group.label));
            }
            Event::Write { block } => self.mark(format!("{}: block {}", Phase::Write.label(), block + 1)),
            Event::Block { .. } => self.mark("load".to_string()),
            Event::Head => self.mark("output matrix".to_string()),
            _ => {}
        }
        self.console.event(event);
    }

    fn seconds(&self) -> f64 {
        self.console.seconds()
    }

    fn cancelled(&self) -> bool {
        self.console.cancelled()
    }
}

impl Traced {
    /// Ends the progress, and writes the trace to `path` if there is one. `kernels`: all that ran, to the end.
    pub fn finish(self, path: Option<&Path>, kernels: &[KernelTime]) -> Result<()> {
        path.map_or(Ok(()), |path| self.write(path, kernels))
    }

    /// Writes the trace and prints which kernels took the time.
    fn write(mut self, path: &Path, kernels: &[KernelTime]) -> Result<()> {
        let end = self.console.seconds();
        self.mark(String::new());
        let span = |name: &str, track: u32, start: f64, seconds: f64| json!({ "name": name, "ph": "X", "pid": 1, "tid": track, "ts": start * 1e6, "dur": seconds * 1e6 });
        let track = |number: u32, name: &str| json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": { "name": name } });
        let mut events: Vec<Value> = vec![track(1, "phases"), track(2, "kernels on the GPU")];
        for pair in self.marks.windows(2).filter(|pair| !pair[0].1.is_empty()) {
            events.push(span(&pair[0].1, 1, pair[0].0, pair[1].0 - pair[0].0));
        }
        // The GPU's clock has another origin. Its last kernel ended about now.
        let last = kernels.iter().map(|kernel| kernel.start + kernel.seconds).fold(f64::NEG_INFINITY, f64::max);
        for kernel in kernels {
            events.push(span(kernel.kernel, 2, kernel.start - last + end, kernel.seconds));
        }
        write_json(path, &json!({ "traceEvents": events, "displayTimeUnit": "ms" }))?;
        if !kernels.is_empty() {
            print(kernels, self.marks.first().map_or(end, |(start, _)| end - start));
        }
        say!("wrote {}", path.display());
        Ok(())
    }
}

/// Prints the kernels by the time that they took in `wall` seconds.
fn print(kernels: &[KernelTime], wall: f64) {
    let mut sums: BTreeMap<&str, (usize, f64, f64)> = BTreeMap::new();
    for kernel in kernels {
        let (count, seconds, work) = sums.entry(kernel.kernel).or_default();
        (*count, *seconds, *work) = (*count + 1, *seconds + kernel.seconds, *work + kernel.work);
    }
    let busy: f64 = sums.values().map(|(_, seconds, _)| seconds).sum();
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(vec!["kernel", "dispatches", "seconds", "share", "Gflop/s"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (name, (count, seconds, work)) in rows {
        let rate = if seconds > 0.0 { format!("{:.1}", work / seconds / 1e9) } else { String::new() };
        let share = format!("{:.1} %", 100.0 * seconds / busy);
        table.add_row(vec![name.to_string(), count.to_string(), format!("{seconds:.3}"), share, rate]);
    }
    say!("{table}");
    say!("the GPU was busy for {busy:.2} s of {wall:.2} s, {:.0} %", 100.0 * busy / wall);
}
