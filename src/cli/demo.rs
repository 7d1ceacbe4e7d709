//! `aquatint demo`: the bundled model, full precision and four ways of quantizing it to 3 bits, in one table.

use aquatint::device::Recorder;
use aquatint::observer::Observer;
use aquatint::pipeline::quantize;
use aquatint::quant::options::default_symmetry;
use aquatint::quant::{Alpha, Method, QuantizeOptions};
use aquatint::stored::Replacements;
use aquatint::study::checkpoint_run::calibration_windows;
use aquatint::study::evaluation::Evaluated;
use aquatint::{Calibration, Result, bundled};
use comfy_table::{CellAlignment, Table, presets};

use super::args::DemoArgs;
use super::console::Console;
use super::eval::evaluation_text;
use super::{open_device, open_model};

const BITS: u32 = 3;
const SAMPLES: usize = 64;
const SEQ_LEN: usize = 256;
const EVALUATION_WINDOWS: usize = 40;

/// Quantizes the model in all four ways and prints the table.
pub fn run(args: DemoArgs) -> Result<()> {
    let device = open_device(&args.device)?;
    let model = open_model(None)?;
    let tokenizer = pollster::block_on(model.tokenizer())?;
    let text = Calibration::from_texts(&tokenizer, &[bundled::calibration_text()], model.config().vocab_size)?;
    let evaluation = evaluation_text(&model, bundled::evaluation_text(), SEQ_LEN, Some(EVALUATION_WINDOWS))?;
    let base = QuantizeOptions {
        bits: BITS,
        symmetry: default_symmetry(BITS),
        samples: SAMPLES,
        seq_len: SEQ_LEN,
        ..QuantizeOptions::default()
    };
    let windows = calibration_windows(&text, &base)?;
    let mut rec = Recorder::new(&device);
    let mut console = Console::quiet();
    let mut perplexity = |rec: &mut Recorder, layers: Option<&Replacements>| -> Result<f64> {
        let evaluated = Evaluated { layers, ..Evaluated::new(&model) };
        Ok(pollster::block_on(evaluation.evaluate(rec, evaluated, &mut console))?.perplexity)
    };
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(vec!["", "perplexity", "last-block error", "seconds"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.add_row(vec!["full precision".to_string(), format!("{:.2}", perplexity(&mut rec, None)?)]);
    for (name, method, alpha) in [
        ("RTN", Method::Rtn, Alpha::Off),
        ("RTN + QEP", Method::Rtn, Alpha::Auto),
        ("GPTQ", Method::Gptq, Alpha::Off),
        ("GPTQ + QEP", Method::Gptq, Alpha::Auto),
    ] {
        let mut options = QuantizeOptions { method, ..base.clone() };
        options.alpha.default = alpha;
        let mut layers = Replacements::new();
        let mut clock = Console::quiet();
        let since = clock.seconds();
        let run = quantize(&mut rec, &model, &windows, &options, &mut layers, &mut clock);
        let report = pollster::block_on(run)?;
        let seconds = clock.seconds() - since;
        let perplexity = perplexity(&mut rec, Some(&layers))?;
        table.add_row(vec![
            name.to_string(),
            format!("{perplexity:.2}"),
            format!("{:.4}", report.last_error()),
            format!("{seconds:.1}"),
        ]);
    }
    say!("{} at {BITS} bits, groups of 32, {SAMPLES} windows of {SEQ_LEN} tokens", model.name());
    say!("{table}");
    Ok(())
}
