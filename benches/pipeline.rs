//! Measures a whole run on random weights with the shape of SmolLM2-135M: `cargo bench --bench pipeline -- --device NAME`.
//!
//! The time does not depend on the values of the weights, and every block takes the same time. So a few blocks represent all 30.
//! Rates are compared with a large matrix product, which is measured in the same run.

mod support;

use std::process::ExitCode;
use std::time::Instant;

use aquatint::checkpoint::{Checkpoint, MemorySource, Source};
use aquatint::device::{Precision, Recorder};
use aquatint::observer::{Event, Observer};
use aquatint::ops::grid::Symmetry;
use aquatint::pipeline::quantize;
use aquatint::quant::{GroupSize, QuantizeOptions};
use aquatint::record::Phase;
use aquatint::stored::Replacements;
use aquatint::{ModelConfig, Result};
use clap::Parser;
use half::bf16;
use pollster::block_on;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use support::{Table, percent};

/// The size of the vocabulary. It is small, because the embedding is not measured.
const VOCABULARY: usize = 1024;
/// A phase that reaches this share of the matmul limit is efficient.
const GOOD_SHARE: f64 = 0.6;

/// Quantizes random weights of SmolLM2's shape to 3 bits per channel, automatic α, and says where the time goes.
#[derive(Debug, Parser)]
struct Arguments {
    /// cpu, gpu, or a number or name that `aquatint devices` lists
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Kernels of large products: fast, where the device has them, or portable
    #[arg(long, default_value = "fast")]
    precision: Precision,
    /// Blocks of the model, of 30 in SmolLM2-135M
    #[arg(long, default_value_t = 2)]
    blocks: usize,
    /// Calibration windows
    #[arg(long, default_value_t = 32)]
    samples: usize,
    /// Tokens per window
    #[arg(long, default_value_t = 512)]
    seq_len: usize,
    /// A smaller product to measure the limit with, for software adapters
    #[arg(long)]
    quick: bool,
    /// Passed by cargo, means nothing
    #[arg(long, hide = true)]
    bench: bool,
}

/// An observer with a clock, which prints a line after each block.
struct Clock(Instant);

impl Observer for Clock {
    fn event(&mut self, event: &Event) {
        if let Event::Block { block, errors } = event {
            eprintln!("block {block}: {:.1} s, error {:.3}", self.seconds(), errors[0]);
        }
    }
    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
    fn cancelled(&self) -> bool {
        false
    }
}

fn main() -> ExitCode {
    support::exit(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let &Arguments { blocks, samples, seq_len, .. } = arguments;
    let mut rec = Recorder::new(&support::open(&arguments.device, arguments.precision)?);
    let limit = support::matmul_limit(&mut rec, arguments.quick)?;
    rec.trim();
    let checkpoint = block_on(random_checkpoint(blocks, seq_len))?;
    let options = QuantizeOptions {
        bits: 3,
        group_size: GroupSize::PerChannel,
        symmetry: Symmetry::Asymmetric,
        samples,
        seq_len,
        ..QuantizeOptions::default()
    };
    let mut layers = Replacements::new();
    let mut clock = Clock(Instant::now());
    let windows = windows(samples, seq_len);
    let report = block_on(quantize(&mut rec, &checkpoint, &windows, &options, &mut layers, &mut clock))?;

    let (tokens, total) = (samples * seq_len, report.total_seconds);
    println!("Limit: matmul {:.1} GFLOP/s", limit / 1e9);
    let QuantizeOptions { method, grid, descent_passes, .. } = &options;
    println!(
        "{blocks} blocks, {samples} × {seq_len} tokens, 3 bits per channel, {method:?}, {grid:?} grids, {descent_passes} passes of descent, automatic α\n"
    );
    let mut table = Table::new(["phase", "seconds", "of total", "GFLOP/s", "of limit"], 1);
    let mut good_seconds = 0.0;
    for (&phase, &seconds) in &report.seconds {
        let share = flops(checkpoint.config(), phase, samples, seq_len).map(|flops| flops / seconds / limit);
        if share.is_some_and(|share| share >= GOOD_SHARE) {
            good_seconds += seconds;
        }
        let cell = |text: Option<String>| text.unwrap_or_else(|| "–".to_string());
        table.row([
            phase.label().to_string(),
            format!("{seconds:.2}"),
            percent(seconds / total),
            cell(share.map(|share| format!("{:.1}", share * limit / 1e9))),
            cell(share.map(percent)),
        ]);
    }
    table.row(["total".to_string(), format!("{total:.2}"), percent(1.0), "–".to_string(), "–".to_string()]);
    table.print();
    println!("\nTokens × blocks per second: {:.0}", (tokens * blocks) as f64 / total);
    println!("Time in phases at {} of the limit or more: {}", percent(GOOD_SHARE), percent(good_seconds / total));
    match peak_bytes() {
        Some(bytes) => println!("Peak memory of the process (VmHWM): {:.0} MB", bytes / 1e6),
        None => println!("Peak memory of the process: not known on this system"),
    }
    Ok(())
}

/// Returns the floating-point operations of a phase over the run; `None` for phases that are not mostly matrix products.
///
/// Forward: both streams through the linears and causal attention. Statistics: half of X̂ᵀX̂, and δᵀX̂. Other operations are not
/// counted.
fn flops(config: &ModelConfig, phase: Phase, samples: usize, seq_len: usize) -> Option<f64> {
    let tokens = (samples * seq_len) as f64;
    let linears = config.block_linears(0);
    let per_block = match phase {
        Phase::Forward => {
            let weights: usize = linears.iter().map(|linear| linear.rows * linear.columns).sum();
            // q has heads × head_dim rows. A query sees (length + 1) / 2 keys on average.
            let attention = 2.0 * linears[0].rows as f64 * (seq_len + 1) as f64;
            2.0 * tokens * (2.0 * weights as f64 + attention)
        }
        Phase::Statistics => {
            // The inputs of q, o, gate and down: one linear of each group.
            let squares: usize = [0, 3, 4, 6].iter().map(|&i| linears[i].columns.pow(2)).sum();
            3.0 * tokens * squares as f64
        }
        _ => return None,
    };
    Some(per_block * config.blocks.len() as f64)
}

/// Returns windows of random tokens.
fn windows(samples: usize, seq_len: usize) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    (0..samples).map(|_| (0..seq_len).map(|_| rng.random_range(0..VOCABULARY as u32)).collect()).collect()
}

/// Returns a random checkpoint in memory, in bf16. Its activations neither vanish nor overflow.
async fn random_checkpoint(blocks: usize, seq_len: usize) -> Result<Checkpoint> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": blocks, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "hidden_act": "silu", "max_position_embeddings": seq_len,
        "tie_word_embeddings": true,
    })
    .to_string();
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (seed, (name, shape)) in ModelConfig::parse(&config, "config.json")?.expected_tensors().into_iter().enumerate()
    {
        let (start, len) = (data.len(), shape.iter().product());
        let values = match shape[..] {
            // An input of unit variance gives products of unit variance. Norms are 1.
            [_, columns] => support::random(seed as u64, len, (3.0 / columns as f32).sqrt()),
            _ => vec![1.0; len],
        };
        data.extend(values.into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()));
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let weights = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    let files = [("config.json", config.into_bytes()), ("model.safetensors", weights)];
    let source = |(name, bytes): (&str, Vec<u8>)| Box::new(MemorySource::new(name, bytes)) as Box<dyn Source>;
    Checkpoint::from_sources("random weights", files.into_iter().map(source).collect()).await
}

/// Returns the peak memory of this process in bytes, if the system tells it.
fn peak_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}
