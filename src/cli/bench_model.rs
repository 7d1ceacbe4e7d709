//! `aquatint bench-model`: how long it takes to quantize a model of some shape, measured on random weights.

use std::collections::BTreeMap;
use std::path::Path;

use aquatint::checkpoint::random;
use aquatint::device::{Device, Memory, Precision, Recorder};
use aquatint::observer::Observer;
use aquatint::pipeline::{Treatment, quantize, work};
use aquatint::quant::QuantizeOptions;
use aquatint::record::{Phase, Plan, Report};
use aquatint::study::files::write_json;
use aquatint::study::retry::with_less_memory;
use aquatint::study::shape::with_blocks;
use aquatint::study::trial::{NoOutput, product_rate, random_windows};
use aquatint::{Checkpoint, Error, ModelConfig, Result, Sampling};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanDuration;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{BenchModelArgs, CalibrationArgs};
use super::console::Console;
use super::memory::summary;
use super::profile::Traced;
use super::speed::{operations, peak_memory};
use super::{check_writable, open_device};

/// What `--json` writes.
#[derive(Serialize)]
struct Record<'a> {
    shape: &'a str,
    /// Blocks that were quantized.
    blocks: usize,
    /// Blocks of the whole model.
    blocks_of_the_model: usize,
    device: &'a str,
    precision: Precision,
    options: &'a QuantizeOptions,
    /// Seconds of each phase, in all blocks that were quantized.
    seconds: &'a BTreeMap<Phase, f64>,
    total_seconds: f64,
    /// Operations of each phase, in the same blocks.
    work: &'a BTreeMap<Phase, f64>,
    /// Operations per second of an f32 matrix product, measured before the run.
    product_rate: f64,
    plan: Option<&'a Plan>,
    peak_device_bytes: Option<u64>,
    peak_host_bytes: Option<u64>,
    extrapolated_seconds: f64,
}

/// Quantizes some blocks of random weights and prints where the time went.
pub fn run(args: BenchModelArgs) -> Result<()> {
    let files = [("--json", &args.json), ("--profile", &args.profile)];
    check_writable(&files.map(|(option, path)| (option, path.as_deref())))?;
    let (model, blocks_of_the_model) = random_blocks(&args)?;
    let options = options(&args, model.config());
    Treatment::new(&options, model.config()).validate()?;
    let device = open_device(&args.device)?;
    let memory = args.memory.resolve(&device, args.json.as_deref())?;
    let console = Console::new();
    let rate = pollster::block_on(product_rate(&mut Recorder::new(&device), &console))?;
    let report = quantize_blocks(&args, &model, &options, (&device, memory), console)?;
    let work = work(model.config(), &options);
    print(&args, &report, &work, rate);
    say!("{}", summary(&report));
    let whole = report.total_seconds / args.blocks as f64 * blocks_of_the_model as f64;
    let all = HumanDuration(std::time::Duration::from_secs_f64(whole));
    say!("all {blocks_of_the_model} blocks at this pace: {whole:.0} s ({all}), without reading and writing files");
    let Some(path) = &args.json else { return Ok(()) };
    let record = Record {
        shape: &args.shape,
        blocks: args.blocks,
        blocks_of_the_model,
        device: &report.device,
        precision: report.precision,
        options: &options,
        seconds: &report.seconds,
        total_seconds: report.total_seconds,
        work: &work,
        product_rate: rate,
        plan: report.plan.as_ref(),
        peak_device_bytes: report.peak_device_bytes,
        peak_host_bytes: peak_memory(),
        extrapolated_seconds: whole,
    };
    write_json(path, &record)
}

/// A model of random weights with the blocks to quantize, and how many blocks the whole model has.
fn random_blocks(args: &BenchModelArgs) -> Result<(Checkpoint, usize)> {
    let shape = shape(&args.shape)?;
    let model = ModelConfig::from_value(&shape, &args.shape)?;
    let blocks_of_the_model = model.blocks.len();
    if args.blocks == 0 || args.blocks > blocks_of_the_model {
        let expected = format!("1 to {blocks_of_the_model}, the blocks of {}", args.shape);
        return Err(Error::input("--blocks", args.blocks.to_string(), expected, "leave it out for 1"));
    }
    let keys = shape.as_object().cloned().unwrap_or_default();
    let shape = Value::Object(with_blocks(&keys, &model, args.blocks));
    Ok((pollster::block_on(random(&args.shape, &shape, args.seed))?, blocks_of_the_model))
}

fn options(args: &BenchModelArgs, config: &ModelConfig) -> QuantizeOptions {
    let text = CalibrationArgs {
        calibration: Vec::new(),
        samples: Some(args.samples),
        seq_len: Some(args.seq_len),
        sampling: Sampling::Random,
        seed: args.seed,
    };
    args.method.options(&text, config)
}

/// Quantizes on random tokens, drops the layers, and writes the file of `--profile`.
fn quantize_blocks(
    args: &BenchModelArgs,
    model: &Checkpoint,
    options: &QuantizeOptions,
    (device, memory): (&Device, Memory),
    console: Console,
) -> Result<Report> {
    let windows = random_windows(options, model.config().vocab_size);
    let mut console = Traced::new(console);
    let attempt = async |rec: &mut Recorder, observer: &mut dyn Observer| {
        if args.profile.is_some() {
            rec.start_profile()?;
        }
        let report = quantize(rec, model, &windows, options, &mut NoOutput, observer).await?;
        Ok((report, rec.kernel_times().await?))
    };
    let run = with_less_memory(device, memory, options.seq_len, &mut console, attempt);
    let (report, kernel_times) = pollster::block_on(run)?;
    console.finish(args.profile.as_deref(), &kernel_times)?;
    Ok(report)
}

/// Prints seconds and rates by phase, averaged over the blocks. `rate`: operations per second of a matrix product.
fn print(args: &BenchModelArgs, report: &Report, work: &BTreeMap<Phase, f64>, rate: f64) {
    let blocks = args.blocks as f64;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(vec!["phase", "seconds per block", "work", "Gflop/s", "of a matrix product"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut row = |name: &str, seconds: f64, count: Option<f64>| {
        let speed = count.filter(|_| seconds > 0.0).map(|count| count / seconds);
        let or_none = |text: Option<String>| text.unwrap_or_default();
        table.add_row(vec![
            name.to_string(),
            format!("{:.2}", seconds / blocks),
            or_none(count.map(|count| operations(count / blocks))),
            or_none(speed.map(|speed| format!("{:.1}", speed / 1e9))),
            or_none(speed.map(|speed| format!("{:.0} %", 100.0 * speed / rate))),
        ]);
    };
    for (phase, &seconds) in &report.seconds {
        row(phase.label(), seconds, work.get(phase).copied());
    }
    row("all", report.total_seconds, Some(work.values().sum()));
    say!(
        "{} of {}, {} × {} tokens, {}, {} kernels: an f32 matrix product of 1024 × 1024 runs at {:.1} Gflop/s",
        if args.blocks == 1 { "1 block".to_string() } else { format!("{} blocks", args.blocks) },
        args.shape,
        args.samples,
        args.seq_len,
        report.device,
        report.precision,
        rate / 1e9
    );
    say!("{table}");
}

/// The config.json of a well-known model by name, or the one in the file `name`.
fn shape(name: &str) -> Result<Value> {
    let llama = |hidden: u32, inner: u32, layers: u32, heads: u32, kv_heads: u32, vocabulary: u32| {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false
        })
    };
    match name {
        "llama-2-7b" => Ok(llama(4096, 11008, 32, 32, 32, 32000)),
        "llama-3-8b" => Ok(llama(4096, 14336, 32, 32, 8, 128_256)),
        "llama-2-70b" => Ok(llama(8192, 28672, 80, 64, 8, 32000)),
        file => {
            let path = Path::new(file);
            let bytes = std::fs::read(path).map_err(|source| Error::Io {
                path: path.to_owned(),
                action: "read",
                source,
                remedy: "give llama-2-7b, llama-3-8b, llama-2-70b or a config.json".into(),
            })?;
            serde_json::from_slice(&bytes).map_err(|error| {
                Error::input(file, error.to_string(), "a config.json", "give the config.json of a Hugging Face model")
            })
        }
    }
}
