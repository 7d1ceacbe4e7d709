//! `aquatint error-growth`: how the error of the first blocks grows through the others, with and without propagation
//! (Fig. 2 of arXiv 2504.09629).

use aquatint::pipeline::{Job, Treatment, quantize_together};
use aquatint::quant::{Alpha, QuantizeOptions};
use aquatint::record::BlockReport;
use aquatint::report::{Document, Run, html};
use aquatint::stored::Replacements;
use aquatint::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::args::ErrorGrowthArgs;
use super::console::Console;
use super::memory::attempt;
use super::quantize::{calibration_tokens, draw};
use super::{check_writable, open_device, open_model, write_csv, write_json, write_whole};

/// Runs both ways at once, and prints the table.
pub fn run(args: ErrorGrowthArgs) -> Result<()> {
    for (option, path) in [("--csv", &args.csv), ("--json", &args.json), ("--report", &args.report)] {
        path.as_deref().map_or(Ok(()), |path| check_writable(option, path))?;
    }
    let model = open_model(args.model.as_deref())?;
    let mut corrected = args.method.options(&args.calibration, model.config());
    corrected.blocks = Some(args.blocks);
    Treatment::new(&corrected, model.config()).validate()?;
    let alpha = corrected.alpha.default;
    if alpha == Alpha::Off {
        let remedy = "use auto or 0.5; the run without correction is always there";
        return Err(Error::input("--alpha", "off", "a propagation strength to compare with none", remedy));
    }
    let mut plain = corrected.clone();
    plain.alpha.default = Alpha::Off;
    plain.alpha.overrides.clear();
    let windows = draw(&calibration_tokens(&model, &args.calibration)?, &corrected)?;
    let device = open_device(&args.device)?;
    let memory = args.memory.resolve(&device, args.json.as_deref())?;
    let mut console = Console::new();
    let reports = attempt(&device, memory, corrected.seq_len, |rec| {
        let (mut layers, mut corrected_layers) = (Replacements::new(), Replacements::new());
        let jobs = vec![Job::new(&plain, &mut layers), Job::new(&corrected, &mut corrected_layers)];
        pollster::block_on(quantize_together(rec, &model, &windows, jobs, &mut console))
    })?;
    drop(console);
    let labels = ["α off".to_string(), format!("α {alpha}")];
    let run = |(report, label)| Ok(Run::new(label, model.name(), report?));
    let runs: Vec<Run> = reports.into_iter().zip(labels).map(run).collect::<Result<_>>()?;
    print(&runs, &corrected);
    if let Some(path) = &args.csv {
        write_csv(path, &COLUMNS, records(&runs, args.blocks))?;
    }
    let document = Document::new(format!("Error growth in {}", model.name()), "error-growth", runs);
    args.json.as_deref().map_or(Ok(()), |path| write_json(path, &document))?;
    args.report.as_deref().map_or(Ok(()), |path| write_whole(path, &html::html(&document)?))
}

/// Block by block, the error of each run, and how many times the first is as large as the last.
fn rows(runs: &[Run]) -> impl Iterator<Item = (usize, [&BlockReport; 2], f64)> {
    let [plain, corrected] = [&runs[0], &runs[1]].map(|run| &run.report.blocks);
    plain.iter().zip(corrected).map(|(plain, corrected)| {
        (plain.block, [plain, corrected], if corrected.error > 0.0 { plain.error / corrected.error } else { 1.0 })
    })
}

fn print(runs: &[Run], options: &QuantizeOptions) {
    let quantized = options.blocks.unwrap_or(usize::MAX);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(vec!["block", "quantized", &runs[0].label, &runs[1].label, "ratio"]);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (block, errors, ratio) in rows(runs) {
        let mark = if block < quantized { "yes" } else { "" };
        let [plain, corrected] = errors.map(|report| format!("{:.4}", report.error));
        table.add_row(vec![(block + 1).to_string(), mark.to_string(), plain, corrected, format!("{ratio:.2}")]);
    }
    say!("error of the hidden states after each block, ‖S − Ŝ‖/‖S‖:\n{table}");
}

const COLUMNS: [&str; 7] =
    ["block", "quantized", "error_off", "error_corrected", "delta_off", "delta_corrected", "ratio"];

fn records(runs: &[Run], quantized: usize) -> Vec<Vec<String>> {
    let record = |(block, [plain, corrected], ratio): (usize, [&BlockReport; 2], f64)| {
        let numbers = [plain.error, corrected.error, plain.delta, corrected.delta, ratio];
        let first = [(block + 1).to_string(), (block < quantized).to_string()];
        first.into_iter().chain(numbers.map(|number| number.to_string())).collect()
    };
    rows(runs).map(record).collect()
}
