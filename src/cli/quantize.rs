//! `aquatint quantize`: one model into a checkpoint, with progress, a summary and records.

use std::path::{Path, PathBuf};

use aquatint::calibration::TextFile;
use aquatint::checkpoint::gguf::mixtures::Mixture;
use aquatint::checkpoint::{CheckpointWriter, DirectorySink, Existing, FileSink, TensorGroup, read_text_file};
use aquatint::device::{Device, Memory, Recorder};
use aquatint::observer::Observer;
use aquatint::pipeline::Treatment;
use aquatint::quant::QuantizeOptions;
use aquatint::record::Report;
use aquatint::report::{Document, Evaluation, Run, html};
use aquatint::study::checkpoint_run::{CheckpointRun, calibration_windows};
use aquatint::study::evaluation::{Evaluated, EvaluationText};
use aquatint::study::files::{write_json, write_whole};
use aquatint::study::fingerprint::Fingerprint;
use aquatint::study::resume::{EarlierRecords, ResumeDirectory};
use aquatint::study::retry::with_less_memory;
use aquatint::{Calibration, Checkpoint, Error, Result, bundled};
use indicatif::{HumanBytes, HumanDuration};

use super::args::{CalibrationArgs, QuantizeArgs};
use super::console::Console;
use super::eval::evaluation_text;
use super::forecast::forecast;
use super::memory::summary as memory_summary;
use super::names::OptionNames;
use super::profile::Traced;
use super::{check_writable, open_device, open_model};

/// Quantizes, writes and reports.
pub fn run(args: QuantizeArgs) -> Result<()> {
    let files = [("--json", &args.json), ("--report", &args.report), ("--profile", &args.profile)];
    check_writable(&files.map(|(option, path)| (option, path.as_deref())))?;
    let model = open_model(args.model.as_deref())?;
    let options = options(&args, &model)?;
    Treatment::new(&options, model.config()).validate()?;
    let windows = calibration_windows(&calibration_tokens(&model, &args.text)?, &options)?;
    let texts = evaluation_texts(&args, &model, options.seq_len)?;
    let run = pollster::block_on(CheckpointRun::new(&model, &options))?;
    let command = Quantization { args: &args, model: &model, options: &options, windows: &windows, run: &run };
    // The output is checked before the device is opened, since that is quicker.
    let writer = command.writer()?;
    run.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let device = open_device(&args.device)?;
    let memory = args.memory.resolve(&device, Some(&args.out))?;
    if args.dry_run {
        command.announce();
        return forecast(&device, memory, &model, &options);
    }
    let report = command.quantize(&device, memory.clone(), writer)?;
    summarise(&report);
    say!("{}", memory_summary(&report));
    say!("wrote {} to {}", HumanBytes(run.sizes().quantized_bytes), args.out.display());
    let mut record = Run { sizes: Some(run.sizes()), ..Run::new("", model.name(), report) };
    let mut rec = Recorder::new(&device);
    rec.set_memory(memory);
    // The record of a long run is written even if an evaluation after it fails or is cancelled.
    let evaluated = texts.iter().try_for_each(|text| {
        record.evaluations.push(evaluate_output(&mut rec, &model, &args.out, text)?);
        Ok(())
    });
    write_record(&args, record)?;
    evaluated
}

/// The options of the run. The name of the output tells a GGUF file.
///
/// Errors: `Error::Input` if the name of the output and the format contradict each other.
fn options(args: &QuantizeArgs, model: &Checkpoint) -> Result<QuantizeOptions> {
    let named_gguf = args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let format = args.format.map(|format| format.name()).or(named_gguf.then_some("gguf"));
    if named_gguf != (format == Some("gguf")) {
        let (expected, remedy) = match named_gguf {
            true => ("a directory for this format", "choose a name without .gguf, or --format gguf"),
            false => ("a name that ends in .gguf for this format", "choose such a name, or another --format"),
        };
        return Err(Error::input("--out", args.out.display().to_string(), expected, remedy));
    }
    let mut options = args.method.options(&args.text, model.config());
    options.format = format.map(str::to_string);
    options.mixture = args.mixture.clone();
    if let Some(mixture) = args.mixture.as_deref().and_then(Mixture::named) {
        options.bits = mixture.code_bits();
    }
    Ok(options)
}

/// What the command works on.
struct Quantization<'a> {
    args: &'a QuantizeArgs,
    model: &'a Checkpoint,
    options: &'a QuantizeOptions,
    /// Calibration windows.
    windows: &'a [Vec<u32>],
    run: &'a CheckpointRun<'a>,
}

impl<'a> Quantization<'a> {
    /// A writer to `--out`. Errors: `Error::Input` if the directory is in use or the disk too full.
    fn writer(&self) -> Result<CheckpointWriter<'a>> {
        let existing = if self.args.force { Existing::Replace } else { Existing::Refuse };
        let (out, model) = (&self.args.out, self.model.directory());
        match self.run.is_one_file() {
            true => self.run.writer(Box::new(FileSink::new(out, existing, model)?)),
            false => self.run.writer(Box::new(DirectorySink::new(out, existing, model)?)),
        }
    }

    /// Prints what `--dry-run` leaves undone.
    fn announce(&self) {
        let group_size = Treatment::new(self.options, self.model.config()).group_size();
        let groups = group_size.map_or("one grid per row".to_string(), |size| format!("groups of {size}"));
        say!(
            "would quantize {} to {} bits, {groups}, on {} windows of {} tokens, and write {} to {}",
            self.model.name(),
            self.options.bits,
            self.windows.len(),
            self.options.seq_len,
            HumanBytes(self.run.sizes().quantized_bytes),
            self.args.out.display()
        );
        if let Some(layout) = self.model.layout() {
            say!("source: {layout} weights, widened as they are read");
        }
        for (fate, groups) in [("copied unchanged", self.run.copied()), ("left out", self.run.left_out())] {
            if !groups.is_empty() {
                say!("{fate}: {}", listing(groups));
            }
        }
    }

    /// Quantizes and completes the output, from the first block or from where an earlier run was stopped.
    fn quantize(&self, device: &Device, memory: Memory, writer: CheckpointWriter<'_>) -> Result<Report> {
        let args = self.args;
        let earlier = match args {
            _ if args.resume => EarlierRecords::Resume,
            _ if args.force => EarlierRecords::Discard,
            _ => EarlierRecords::Protect,
        };
        let original = pollster::block_on(Fingerprint::new(self.model, device))?;
        let fingerprint = original.quantized(self.options, self.windows);
        let mut records = ResumeDirectory::open(&args.out, &fingerprint, earlier)?;
        let blocks = self.model.config().blocks.len();
        if args.resume {
            eprintln!("resuming: {} of {blocks} blocks are done", records.blocks());
        }
        let mut console = Traced::new(Console::new());
        let mut first_writer = Some(writer);
        let attempt = async |rec: &mut Recorder, observer: &mut dyn Observer| {
            let writer = first_writer.take().map_or_else(|| self.writer(), Ok)?;
            if args.profile.is_some() {
                rec.start_profile()?;
            }
            let report = self.run.quantize(rec, self.windows, writer, Some(records.journal()), observer).await?;
            Ok((report, rec.kernel_times().await?))
        };
        let run = with_less_memory(device, memory, self.options.seq_len, &mut console, attempt);
        let (report, kernel_times) = pollster::block_on(run).inspect_err(|_| match records.blocks() {
            0 => eprintln!("nothing was written"),
            done => eprintln!("{done} of {blocks} blocks are kept; the same command with --resume goes on from there"),
        })?;
        records.finish();
        console.finish(args.profile.as_deref(), &kernel_times)?;
        Ok(report)
    }
}

/// "312 tensors of the vision tower (0.80 GiB), 15 of the MTP head (0.20 GiB)".
fn listing(groups: &[TensorGroup]) -> String {
    let line = |(position, group): (usize, &TensorGroup)| {
        let noun = match (position, group.tensors) {
            (0, 1) => " tensor",
            (0, _) => " tensors",
            _ => "",
        };
        format!("{}{noun} of the {} ({})", group.tensors, group.part, HumanBytes(group.bytes))
    };
    groups.iter().enumerate().map(line).collect::<Vec<_>>().join(", ")
}

/// The texts of `--evaluate`.
fn evaluation_texts(args: &QuantizeArgs, model: &Checkpoint, seq_len: usize) -> Result<Vec<EvaluationText>> {
    let read = |path: &PathBuf| {
        let mut text = evaluation_text(model, read_text_file(path)?, seq_len, None)?;
        text.windows.truncate(args.evaluate_windows.get());
        Ok(text)
    };
    args.evaluate.iter().map(read).collect()
}

/// Measures the checkpoint in `out` against the original on a text, and prints its perplexity.
fn evaluate_output(rec: &mut Recorder, model: &Checkpoint, out: &Path, text: &EvaluationText) -> Result<Evaluation> {
    let written = pollster::block_on(Checkpoint::open(out))?;
    let mut console = Console::new();
    let evaluated = Evaluated { against: Some(model), ..Evaluated::new(&written) };
    let measured = pollster::block_on(text.evaluate(rec, evaluated, &mut console))?;
    drop(console);
    let name = &text.name;
    let evaluation = Evaluation::new(name, &measured);
    let before = evaluation.original_perplexity.map_or(String::new(), |value| format!(", {value:.4} of the original"));
    say!("perplexity {:.4} on {name}{before}", evaluation.perplexity);
    Ok(evaluation)
}

/// Writes the files of `--json` and `--report`.
fn write_record(args: &QuantizeArgs, run: Run) -> Result<()> {
    if let Some(path) = &args.json {
        write_json(path, &run)?;
    }
    if let Some(path) = &args.report {
        let title = format!("{} at {} bits", file_name(&run.model), run.report.options.bits);
        let page = html::html(&Document::new(title, "quantize", vec![run]), &OptionNames)?;
        write_whole(path, page.as_bytes())?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// The last part of a path; `path` itself if it has none.
fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or(path.to_string(), |name| name.to_string_lossy().into_owned())
}

/// The tokens of `--calibration`, or of the bundled text.
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

/// Prints what became of the layers and where the time went.
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
