//! `aquatint bench-model`: how long a model of some shape takes, without having one.

use std::collections::BTreeMap;
use std::path::Path;

use aquatint::checkpoint::random;
use aquatint::device::{Precision, Recorder};
use aquatint::pipeline::{Output, Treatment, quantize, work};
use aquatint::quant::QuantizeOptions;
use aquatint::record::Report;
use aquatint::record::{Phase, Plan};
use aquatint::stored::StoredLinear;
use aquatint::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};
use futures::future::LocalBoxFuture;
use indicatif::HumanDuration;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{BenchModelArgs, CalibrationArgs};
use super::console::Console;
use super::memory::{attempt, summary};
use super::profile::Traced;
use super::speed::{operations, peak_memory, product_rate};
use super::{check_writable, open_device, write_json};

/// Takes layers and forgets them.
pub struct Nowhere;

impl Output for Nowhere {
    fn put_tensor(&mut self, _: String, _: Vec<f32>) -> Result<()> {
        Ok(())
    }

    fn put(&mut self, _: StoredLinear) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// The calibration windows that `options` ask for, of random tokens.
pub fn random_windows(options: &QuantizeOptions, vocabulary: usize) -> Vec<Vec<u32>> {
    let mut dice = ChaCha8Rng::seed_from_u64(options.seed);
    let mut window = || (0..options.seq_len).map(|_| dice.random_range(0..vocabulary as u32)).collect();
    (0..options.samples).map(|_| window()).collect()
}

/// What `--json` writes.
#[derive(Serialize)]
struct Record<'a> {
    shape: &'a str,
    /// Blocks that were quantized, and of the whole model.
    blocks: usize,
    blocks_of_the_model: usize,
    device: &'a str,
    precision: Precision,
    options: &'a QuantizeOptions,
    /// Of all blocks that were quantized.
    seconds: &'a BTreeMap<Phase, f64>,
    total_seconds: f64,
    /// Operations of the same.
    work: &'a BTreeMap<Phase, f64>,
    /// Operations per second of an f32 matrix product in the same process.
    product_rate: f64,
    plan: Option<&'a Plan>,
    peak_device_bytes: Option<u64>,
    peak_host_bytes: Option<u64>,
    extrapolated_seconds: f64,
}

/// Quantizes some blocks of random weights and prints where the time went.
pub fn run(args: BenchModelArgs) -> Result<()> {
    for (option, path) in [("--json", &args.json), ("--profile", &args.profile)] {
        path.as_deref().map_or(Ok(()), |path| check_writable(option, path))?;
    }
    let mut shape = shape(&args.shape)?;
    let blocks_of_the_model = shape["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    if args.blocks == 0 || args.blocks > blocks_of_the_model {
        let expected = format!("1 to {blocks_of_the_model}, the blocks of {}", args.shape);
        return Err(Error::input("--blocks", args.blocks.to_string(), expected, "leave it out for 1"));
    }
    shape["num_hidden_layers"] = json!(args.blocks);
    let model = pollster::block_on(random(&args.shape, &shape, args.seed))?;
    let config = model.config();
    let text = CalibrationArgs {
        calibration: Vec::new(),
        samples: Some(args.samples),
        seq_len: Some(args.seq_len),
        sampling: aquatint::Sampling::Random,
        seed: args.seed,
    };
    let options = args.method.options(&text, config);
    Treatment::new(&options, config).validate()?;
    let windows = random_windows(&options, config.vocab_size);
    let device = open_device(&args.device)?;
    let memory = args.memory.resolve(&device, args.json.as_deref())?;
    let rate = product_rate(&mut Recorder::new(&device))?;
    let mut console = Traced::new(Console::new());
    let (report, kernel_times) = attempt(&device, memory, options.seq_len, |rec| {
        if args.profile.is_some() {
            rec.profile()?;
        }
        pollster::block_on(async {
            let report = quantize(rec, &model, &windows, &options, &mut Nowhere, &mut console).await?;
            Ok((report, rec.kernel_times().await?))
        })
    })?;
    match &args.profile {
        Some(path) => console.write(path, &kernel_times)?,
        None => drop(console),
    }
    let work = work(config, &options);
    let whole = report.total_seconds / args.blocks as f64 * blocks_of_the_model as f64;
    print(&args, &report, &work, rate);
    say!("{}", summary(&report));
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

/// Seconds and rates by phase, of one block on average.
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

/// The configuration of a well-known model, or that in a file.
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
                remedy: "give llama-2-7b, llama-3-8b, llama-2-70b or a config.json".to_string(),
            })?;
            serde_json::from_slice(&bytes).map_err(|error| {
                Error::input(file, error.to_string(), "a config.json", "give the config.json of a Hugging Face model")
            })
        }
    }
}
