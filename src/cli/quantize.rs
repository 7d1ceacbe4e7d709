//! `aquatint quantize`.

use std::path::{Path, PathBuf};

use aquatint::calibration::TextFile;
use aquatint::checkpoint::{
    CheckpointWriter, DEFAULT_SHARD_LIMIT, DirectorySink, Existing, Format, WritePlan, read_text_file,
};
use aquatint::device::Recorder;
use aquatint::engine::block::Stage;
use aquatint::engine::network::Network;
use aquatint::eval::evaluate;
use aquatint::family::LinearSpec;
use aquatint::family::ModelConfig;
use aquatint::pipeline::{Job, Treatment, quantize_together};
use aquatint::quant::QuantizeOptions;
use aquatint::record::Report;
use aquatint::report::{Document, Evaluation, Run, Sizes, html};
use aquatint::{Calibration, Checkpoint, Error, Result, bundled};
use indicatif::{HumanBytes, HumanDuration};

use super::args::{CalibrationArgs, FormatArg, QuantizeArgs};
use super::console::Console;
use super::eval::evaluation_windows;
use super::fingerprint::Fingerprint;
use super::forecast::forecast;
use super::memory::{attempt, summary as memory_summary};
use super::profile::Traced;
use super::unfinished::{Earlier, Unfinished};
use super::{check_writable, open_device, open_model, write_json, write_whole};

/// Quantizes, writes and reports.
pub fn run(args: QuantizeArgs) -> Result<()> {
    for (option, path) in [("--json", &args.json), ("--report", &args.report), ("--profile", &args.profile)] {
        path.as_deref().map_or(Ok(()), |path| check_writable(option, path))?;
    }
    let model = open_model(args.model.as_deref())?;
    let options = args.method.options(&args.text, model.config());
    let treatment = Treatment::new(&options, model.config());
    treatment.validate()?;
    let windows = draw(&calibration_tokens(&model, &args.text)?, &options)?;
    let texts = evaluation_texts(&args, &model, options.seq_len)?;
    let format = format(args.format, treatment)?;
    let plan = WritePlan::new(&model, format, &treatment.layers(), DEFAULT_SHARD_LIMIT)?;
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    let sink = DirectorySink::new(&args.out, existing, model.directory())?;
    let sizes = Sizes {
        original_bytes: model.bytes(),
        quantized_bytes: plan.bytes(),
        bits_per_weight: Some(plan.bits_per_weight()),
    };
    if let (Format::Gptq(_), Some(layers)) = (format, unequal_parts(&options, model.config())) {
        eprintln!(
            "note: {layers} are treated differently; vLLM joins them into one matrix and will not load this checkpoint"
        );
    }
    let mut writer = Some(CheckpointWriter::new(&model, plan.clone(), Box::new(sink))?);
    let device = open_device(&args.device)?;
    let memory = args.memory.resolve(&device, Some(&args.out))?;
    if args.dry_run {
        let groups = treatment.group_size().map_or("one grid per row".to_string(), |size| format!("groups of {size}"));
        say!(
            "would quantize {} to {} bits, {groups}, on {} windows of {} tokens, and write {} to {}",
            model.name(),
            options.bits,
            windows.len(),
            options.seq_len,
            HumanBytes(sizes.quantized_bytes),
            args.out.display()
        );
        return forecast(&device, memory, &model, &options);
    }
    let earlier = match args {
        _ if args.resume => Earlier::Resume,
        _ if args.force => Earlier::Discard,
        _ => Earlier::Protect,
    };
    let fingerprint = Fingerprint::new(&model, &device)?.quantized(&options, &windows);
    let mut unfinished = Unfinished::open(&args.out, &fingerprint, earlier)?;
    let blocks = model.config().num_hidden_layers;
    if args.resume {
        eprintln!("resuming: {} of {blocks} blocks are done", unfinished.blocks());
    }
    let mut console = Traced::new(Console::new());
    let result = attempt(&device, memory.clone(), options.seq_len, |rec| {
        let mut writer = match writer.take() {
            Some(writer) => writer,
            None => {
                let sink = DirectorySink::new(&args.out, existing, model.directory())?;
                CheckpointWriter::new(&model, plan.clone(), Box::new(sink))?
            }
        };
        if args.profile.is_some() {
            rec.profile()?;
        }
        pollster::block_on(async {
            let job = Job { options: &options, output: &mut writer, journal: Some(unfinished.journal()) };
            let report = quantize_together(rec, &model, &windows, vec![job], &mut console).await?.swap_remove(0)?;
            writer.finish().await?;
            Ok((report, rec.kernel_times().await?))
        })
    });
    let (report, kernel_times) = result.inspect_err(|_| match unfinished.blocks() {
        0 => eprintln!("nothing was written"),
        done => eprintln!("{done} of {blocks} blocks are kept; the same command with --resume goes on from there"),
    })?;
    unfinished.finish();
    match &args.profile {
        Some(path) => console.write(path, &kernel_times)?,
        None => drop(console),
    }
    summarise(&report);
    say!("{}", memory_summary(&report));
    say!("wrote {} to {}", HumanBytes(sizes.quantized_bytes), args.out.display());
    let mut run = Run { sizes: Some(sizes), ..Run::new("", model.name(), report) };
    let mut rec = Recorder::new(&device);
    rec.set_memory(memory);
    // The record of a long run is written even if an evaluation after it fails or is cancelled.
    let evaluated = texts.iter().try_for_each(|text| {
        run.evaluations.push(evaluate_result(&mut rec, &model, &args.out, text)?);
        Ok(())
    });
    record(&args, run)?;
    evaluated
}

/// A text by name, and its windows.
type Windows = (String, Vec<Vec<u32>>);

/// The texts of `--evaluate`, read before the work begins.
fn evaluation_texts(args: &QuantizeArgs, model: &Checkpoint, seq_len: usize) -> Result<Vec<Windows>> {
    let windows = |path: &PathBuf| {
        let text = read_text_file(path)?;
        let mut windows = evaluation_windows(model, &text, seq_len, None)?;
        windows.truncate(args.evaluate_windows.get());
        Ok((text.name, windows))
    };
    args.evaluate.iter().map(windows).collect()
}

/// Measures what was written to `out` against the original on a text.
fn evaluate_result(rec: &mut Recorder, model: &Checkpoint, out: &Path, text: &Windows) -> Result<Evaluation> {
    let (name, windows) = text;
    let written = open_model(Some(out))?;
    let quantized = Network::new(rec, &written, None, windows[0].len())?;
    let original = Network::new(rec, model, None, windows[0].len())?;
    let mut console = Console::new();
    let measured = pollster::block_on(evaluate(rec, &quantized, Some(&original), windows, &mut console))?;
    drop(console);
    let evaluation = Evaluation::new(name, &measured);
    let before = evaluation.original_perplexity.map_or(String::new(), |value| format!(", {value:.4} of the original"));
    say!("perplexity {:.4} on {name}{before}", evaluation.perplexity);
    Ok(evaluation)
}

/// Writes what `--json` and `--report` ask for.
fn record(args: &QuantizeArgs, run: Run) -> Result<()> {
    if let Some(path) = &args.json {
        write_json(path, &run)?;
    }
    if let Some(path) = &args.report {
        let title = format!("{} at {} bits", file_name(&run.model), run.report.options.bits);
        write_whole(path, &html::html(&Document::new(title, "quantize", vec![run]))?)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// Layers that vLLM joins into one, if they differ in bits or in being quantized at all.
fn unequal_parts(options: &QuantizeOptions, config: &ModelConfig) -> Option<String> {
    let joined = (0..config.num_hidden_layers).flat_map(|block| {
        let linears = config.block_linears(block);
        [Stage::Attention, Stage::GateUp].map(|stage| linears[stage.linears()].to_vec())
    });
    let differ = |part: &Vec<LinearSpec>| {
        part.iter().any(|linear| options.bits_of(&linear.name) != options.bits_of(&part[0].name))
    };
    let names = |part: Vec<LinearSpec>| part.into_iter().map(|linear| linear.name).collect::<Vec<_>>().join(", ");
    joined.into_iter().find(differ).map(names)
}

/// The last part of a path, or a name that is none.
fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or(path.to_string(), |name| name.to_string_lossy().into_owned())
}

fn format(wanted: Option<FormatArg>, treatment: Treatment<'_>) -> Result<Format> {
    let method = treatment.options.method;
    match (method.quantizer().off_grid(), wanted) {
        (_, Some(FormatArg::Float)) => Ok(Format::Float),
        (Some(why), Some(FormatArg::Gptq)) => Err(Error::input(
            "--format",
            format!("gptq for --method {method}, whose weights {why}"),
            "float",
            "leave --format out",
        )),
        _ => Ok(treatment.format()),
    }
}

/// The text to calibrate on, as tokens of the model.
pub fn calibration_tokens(model: &Checkpoint, text: &CalibrationArgs) -> Result<Calibration> {
    let files: Vec<TextFile> = if text.calibration.is_empty() {
        if model.directory().is_some() {
            eprintln!(
                "note: calibrating on the small bundled text; --calibration FILE with more text gives a better model"
            );
        }
        vec![bundled::calibration_text()]
    } else {
        text.calibration.iter().map(|path| read_text_file(path)).collect::<Result<_>>()?
    };
    let tokenizer = pollster::block_on(model.tokenizer())?;
    Calibration::from_texts(&tokenizer, &files, model.config().vocab_size)
}

/// The calibration windows that the options ask for.
pub fn draw(tokens: &Calibration, options: &QuantizeOptions) -> Result<Vec<Vec<u32>>> {
    tokens.draw(options.samples, options.held_out(), options.seq_len, options.sampling, options.seed)
}

fn summarise(report: &Report) {
    let alphas: Vec<f64> = report.layers.iter().map(|layer| layer.alpha).collect();
    let mean = alphas.iter().sum::<f64>() / alphas.len().max(1) as f64;
    let guarded = report.guarded().count();
    say!(
        "quantized {} layers in {}: error after the last block {:.4}, mean α {mean:.3}",
        report.layers.len(),
        HumanDuration(std::time::Duration::from_secs_f64(report.total_seconds)),
        report.last_error()
    );
    if guarded > 0 {
        say!("{guarded} layers kept uncorrected: correction made them worse on held-out windows (see --json)");
    }
    let phases: Vec<String> =
        report.seconds.iter().map(|(phase, seconds)| format!("{} {seconds:.1} s", phase.label())).collect();
    say!("time: {}", phases.join(", "));
}
