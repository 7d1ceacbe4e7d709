//! `aquatint error-growth`: a table of the errors that `study::error_growth` measures.

use aquatint::device::Recorder;
use aquatint::observer::Observer;
use aquatint::pipeline::Treatment;
use aquatint::quant::{Alpha, QuantizeOptions};
use aquatint::record::BlockReport;
use aquatint::report::{Document, Run, html};
use aquatint::study::checkpoint_run::calibration_windows;
use aquatint::study::error_growth::error_growth;
use aquatint::study::files::{write_json, write_whole};
use aquatint::study::retry::with_less_memory;
use aquatint::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::args::ErrorGrowthArgs;
use super::console::Console;
use super::names::OptionNames;
use super::quantize::calibration_tokens;
use super::{check_writable, open_device, open_model, write_csv};

/// Quantizes with and without correction and prints the errors of both.
pub fn run(args: ErrorGrowthArgs) -> Result<()> {
    let files = [("--csv", &args.csv), ("--json", &args.json), ("--report", &args.report)];
    check_writable(&files.map(|(option, path)| (option, path.as_deref())))?;
    let model = open_model(args.model.as_deref())?;
    let mut corrected = args.method.options(&args.calibration, model.config());
    corrected.blocks = Some(args.blocks);
    Treatment::new(&corrected, model.config()).validate()?;
    let alpha = corrected.alpha.default;
    if alpha == Alpha::Off {
        let remedy = "use auto or 0.5; the run without correction is always there";
        return Err(Error::input("--alpha", "off", "a propagation strength to compare with none", remedy));
    }
    let windows = calibration_windows(&calibration_tokens(&model, &args.calibration)?, &corrected)?;
    let device = open_device(&args.device)?;
    let memory = args.memory.resolve(&device, args.json.as_deref())?;
    let mut console = Console::new();
    let attempt = async |rec: &mut Recorder, observer: &mut dyn Observer| {
        error_growth(rec, &model, &windows, &corrected, observer).await
    };
    let runs = with_less_memory(&device, memory, corrected.seq_len, &mut console, attempt);
    let runs = pollster::block_on(runs)?;
    drop(console);
    print(&runs, &corrected);
    if let Some(path) = &args.csv {
        write_csv(path, &COLUMNS, records(&runs, args.blocks))?;
    }
    let document = Document::new(format!("Error growth in {}", model.name()), "error-growth", runs.into());
    args.json.as_deref().map_or(Ok(()), |path| write_json(path, &document))?;
    args.report.as_deref().map_or(Ok(()), |path| write_whole(path, html::html(&document, &OptionNames)?.as_bytes()))
}

/// For each block its number, the states of both runs, and the ratio of their errors.
fn rows(runs: &[Run; 2]) -> impl Iterator<Item = (usize, [&BlockReport; 2], f64)> {
    let [plain, corrected] = runs.each_ref().map(|run| &run.report.blocks);
    plain.iter().zip(corrected).map(|(plain, corrected)| {
        (plain.block, [plain, corrected], if corrected.error > 0.0 { plain.error / corrected.error } else { 1.0 })
    })
}

fn print(runs: &[Run; 2], options: &QuantizeOptions) {
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

fn records(runs: &[Run; 2], quantized: usize) -> Vec<Vec<String>> {
    let record = |(block, [plain, corrected], ratio): (usize, [&BlockReport; 2], f64)| {
        let numbers = [plain.error, corrected.error, plain.delta, corrected.delta, ratio];
        let first = [(block + 1).to_string(), (block < quantized).to_string()];
        first.into_iter().chain(numbers.map(|number| number.to_string())).collect()
    };
    rows(runs).map(record).collect()
}
