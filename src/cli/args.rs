//! The options as clap reads them, and their translation to those of the library.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::LazyLock;

use aquatint::checkpoint::{Format, formats};
use aquatint::device::{Choice, Precision};
use aquatint::ops::grid::{Search, Symmetry};
use aquatint::quant::options::default_symmetry;
use aquatint::quant::{ActivationOrder, Alpha, AlphaPolicy, GroupSize, Method, QuantizeOptions, RotationKind};
use aquatint::study::sweep::{Axes, Variant};
use aquatint::{GenerateOptions, ModelConfig, Sampling};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use regex::Regex;

use super::memory::MemoryArgs;

const DEFAULT_SAMPLES: usize = 128;
const DEFAULT_SEQ_LEN: usize = 2048;

/// The methods that `--method` takes.
static METHODS: LazyLock<String> = LazyLock::new(|| Method::ALL.map(Method::name).join("|"));

/// The help of an option that takes methods.
fn method_help(subject: &str) -> String {
    let methods = Method::ALL.map(|method| format!("{method} ({})", method.description()));
    format!("{subject}: {}", methods.join(", "))
}

/// Quantizes language models to 4, 3 and 2 bits on any GPU, or on the CPU.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the GPU adapters, their limits, and which one `--device auto` takes.
    Devices,
    /// List the model families that can be read: what is special about each, and what is missing.
    Families,
    /// Quantize a checkpoint.
    Quantize(Box<QuantizeArgs>),
    /// Measure perplexity on a text, or accuracy in multiple choice, of an ordinary or a quantized checkpoint.
    Eval(EvalArgs),
    /// Quantize in every combination of some options, and evaluate each: a table. Goes on where it was stopped.
    Sweep(Box<SweepArgs>),
    /// Quantize the first blocks only, and follow the error through the others, with and without propagation.
    ErrorGrowth(Box<ErrorGrowthArgs>),
    /// Continue a text, with an ordinary or a quantized checkpoint.
    Generate(GenerateArgs),
    /// Quantize blocks of random weights, of a model's shape, to see how long the model would take here.
    BenchModel(BenchModelArgs),
    /// Make a page of records that --json wrote, or compare several.
    Report(ReportArgs),
    /// Quantize the bundled model four ways and print one table.
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
pub struct DeviceArg {
    /// auto, cpu, gpu, or the number or name of an adapter from `aquatint devices`.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: Choice,
    /// Large products by split f16 on a GPU's matrix units, as exact as f32, where it has them; or the kernels that run anywhere.
    #[arg(long, default_value = "fast", value_name = "fast|portable")]
    pub precision: Precision,
}

#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// A Hugging Face checkpoint directory; left out, the bundled tiny LLaMA.
    pub model: Option<PathBuf>,
    /// Directory to write, which must not exist or be empty; or a file NAME.gguf.
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub out: PathBuf,
    /// Replace --out if it is there, and start again if a run was stopped.
    #[arg(long)]
    pub force: bool,
    /// Go on after the last finished block of a run that was stopped; everything else as it was then.
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub text: CalibrationArgs,
    #[command(flatten)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// How to store the result [default: gguf for a file NAME.gguf, else gptq, of QuIP float].
    #[arg(long, value_parser = format_parser())]
    pub format: Option<&'static dyn Format>,
    /// Types of a GGUF file, as llama-quantize names them, instead of --bits: Q4_K_M, Q3_K_M, Q2_K, Q4_0, Q8_0 …
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "bits")]
    pub mixture: Option<String>,
    /// Measure the perplexity of the original and the result on this text afterwards, for --json and --report.
    #[arg(long, value_name = "FILE")]
    pub evaluate: Vec<PathBuf>,
    /// Windows of each --evaluate text at most, the first ones, as long as those of the calibration.
    #[arg(long, value_name = "N", default_value = "32", requires = "evaluate")]
    pub evaluate_windows: NonZeroUsize,
    /// Write a record of the run: options, α and errors per layer, errors per block, times.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with plots of the same, readable in any browser.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Time every kernel of a GPU, and write what ran when in the Chrome trace format.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Check everything and say what would be done, without doing it.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct MethodArgs {
    #[arg(long, default_value_t = QuantizeOptions::default().method, value_name = METHODS.as_str(), help = method_help("Base quantizer"))]
    pub method: Method,
    /// Bits per weight: 2, 3, 4 or 8; some formats also take 5 and 6.
    #[arg(long, default_value_t = 4, value_name = "BITS")]
    pub bits: u32,
    /// Inputs per grid: auto (the largest of 128, 64, 32 that divides every width), a number, or -1 for one per row.
    #[arg(long, default_value = "auto", value_parser = parse_group_size, allow_hyphen_values = true, value_name = "auto|N|-1")]
    pub group_size: GroupSize,
    /// Propagation strength: auto (per layer, from held-out windows), off, or a number from 0 to 1.
    #[arg(long, default_value = "auto", value_name = "auto|off|0..1")]
    pub alpha: Alpha,
    #[command(flatten)]
    pub details: DetailArgs,
}

/// The options of a method that a sweep does not vary.
#[derive(Debug, Args)]
pub struct DetailArgs {
    /// Zero points fixed in the middle [default at 4 and 8 bits].
    #[arg(long, conflicts_with = "asym")]
    pub sym: bool,
    /// Zero points chosen freely [default at 2 and 3 bits].
    #[arg(long)]
    pub asym: bool,
    /// How grids are chosen: by the extremes, by the errors of weights, or by what these add to GPTQ's loss (with rtn as mse); with
    /// awq all but minmax are its own search of ranges by the error at the output.
    #[arg(long, value_parser = parse_grid, default_value = "hessian", value_name = "minmax|mse|hessian")]
    pub grid: Search,
    /// GPTQ visits columns by falling activation, with static groups [default].
    #[arg(long, conflicts_with = "no_act_order")]
    pub act_order: bool,
    /// GPTQ visits columns as stored, with a group's grid chosen when it is reached.
    #[arg(long)]
    pub no_act_order: bool,
    /// Passes of coordinate descent over codes and scales after GPTQ; 0 keeps what GPTQ chose.
    #[arg(long, default_value_t = QuantizeOptions::default().descent_passes, value_name = "N")]
    pub descent: usize,
    /// QuIP's random transform: kronecker, for any width, or hadamard.
    #[arg(long, value_parser = parse_rotation, default_value = "kronecker", value_name = "kronecker|hadamard")]
    pub rotation: RotationKind,
    /// Leave the layers alone whose path a regular expression matches, such as 'layers\.0\.' or down_proj.
    #[arg(long, value_name = "PATTERN")]
    pub skip: Vec<Regex>,
    /// Bits of the layers whose path a regular expression matches, such as down_proj=4; the last match wins.
    #[arg(long, value_parser = parse_bits_for, value_name = "PATTERN=BITS")]
    pub bits_for: Vec<(Regex, u32)>,
    /// Quantize the output matrix, too; one that is tied to the embedding becomes a matrix of its own.
    #[arg(long)]
    pub lm_head: bool,
    /// α of the layers whose path a regular expression matches, such as down_proj=0.25; the last match wins.
    #[arg(long, value_parser = parse_override, value_name = "PATTERN=VALUE")]
    pub alpha_for: Vec<(Regex, Alpha)>,
    /// κ, the share of the locally best α that auto applies.
    #[arg(long, default_value_t = QuantizeOptions::default().alpha.shrinkage, value_name = "K")]
    pub alpha_shrinkage: f64,
    /// Ridge of the correction, as a share of the mean of diag H.
    #[arg(long, default_value_t = 0.01, value_name = "RHO")]
    pub correction_damping: f64,
    /// Ridge of the rounding, as a share of the mean of diag H.
    #[arg(long, default_value_t = 0.01, value_name = "RHO")]
    pub rounding_damping: f64,
}

#[derive(Debug, Args)]
pub struct CalibrationArgs {
    /// Text to calibrate on: .txt, or .jsonl with a "text" field; left out, the bundled text.
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<PathBuf>,
    /// Calibration windows [default: 128].
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Tokens per window [default: 2048, or what the model allows].
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Windows drawn at random, or the first ones of the text.
    #[arg(long, value_parser = parse_sampling, default_value = "random", value_name = "random|sequential")]
    pub sampling: Sampling,
    /// Seed of the draw.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A checkpoint directory, quantized or not; left out, the bundled tiny LLaMA.
    pub model: Option<PathBuf>,
    /// Text to evaluate on; left out, the bundled evaluation text.
    #[arg(long, requires = "seq_len", value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens per window.
    #[arg(long, required_unless_present = "tasks", value_name = "N")]
    pub seq_len: Option<usize>,
    /// Multiple-choice questions, several times for several files; without --seq-len nothing else is measured.
    #[arg(long, value_name = "FILE.jsonl")]
    pub tasks: Vec<PathBuf>,
    /// Windows, the first ones of the text [default: all].
    #[arg(long, value_name = "N")]
    pub windows: Option<usize>,
    /// Another checkpoint to compare with: KL divergence and top-1 agreement on the same tokens, accuracy in the same tasks.
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Write the result.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SweepArgs {
    /// A Hugging Face checkpoint directory; left out, the bundled tiny LLaMA.
    pub model: Option<PathBuf>,
    /// Directory for the results: a file per finished cell, sweep.json, sweep.csv. What is finished there is kept.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Redo cells whose file was made with other options or texts, or by another version.
    #[arg(long)]
    pub force: bool,
    #[arg(long, default_value = "gptq", value_delimiter = ',', value_name = "METHOD,…", help = method_help("Base quantizers"))]
    pub methods: Vec<Method>,
    /// Bits per weight.
    #[arg(long, default_value = "4,3,2", value_delimiter = ',', value_name = "BITS,…")]
    pub bits: Vec<u32>,
    /// Inputs per grid, each auto, a number, or -1 for one grid per row.
    #[arg(long, default_value = "auto", value_parser = parse_group_size, allow_hyphen_values = true, value_delimiter = ',', value_name = "SIZE,…")]
    pub group_sizes: Vec<GroupSize>,
    /// Propagation strengths, each auto, off, or a number from 0 to 1.
    #[arg(long, default_value = "off,auto", value_delimiter = ',', value_name = "ALPHA,…")]
    pub alphas: Vec<Alpha>,
    /// Seeds of the draw of calibration windows.
    #[arg(long, value_delimiter = ',', conflicts_with = "seed", value_name = "SEED,…")]
    pub seeds: Vec<u64>,
    #[command(flatten)]
    pub details: DetailArgs,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// Text to evaluate on, several times for several; left out, the bundled evaluation text.
    #[arg(long, value_name = "FILE")]
    pub text: Vec<PathBuf>,
    /// Multiple-choice questions to answer as well, several times for several files.
    #[arg(long, value_name = "FILE.jsonl")]
    pub tasks: Vec<PathBuf>,
    /// Tokens per evaluation window [default: those of a calibration window].
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub eval_seq_len: Vec<usize>,
    /// Evaluation windows, the first ones of each text [default: all].
    #[arg(long, value_name = "N")]
    pub windows: Option<usize>,
    /// Cells that go through the model together and share the full-precision stream: more are faster and take more memory.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub together: usize,
    #[command(flatten)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Write a page with all runs.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Check everything and list the cells, without running any.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ErrorGrowthArgs {
    /// A Hugging Face checkpoint directory; left out, the bundled tiny LLaMA.
    pub model: Option<PathBuf>,
    /// How many blocks to quantize: the first ones.
    #[arg(long, value_name = "K")]
    pub blocks: usize,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    #[command(flatten)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Write the table.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write a record of both runs.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with both runs.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A checkpoint directory, quantized or not; left out, the bundled tiny LLaMA.
    pub model: Option<PathBuf>,
    /// Text to continue; - reads standard input, less a last line break.
    #[arg(long, allow_hyphen_values = true, value_name = "TEXT")]
    pub prompt: String,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = GenerateOptions::default().tokens, value_name = "N")]
    pub tokens: usize,
    /// 0 takes the likeliest token each time; above 0 tokens are drawn, the more freely the higher.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "T")]
    pub temperature: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Room for the tokens of prompt and continuation, at most what the model allows [default: as many as there will be].
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArg,
}

#[derive(Debug, Args)]
pub struct BenchModelArgs {
    /// llama-2-7b, llama-3-8b, llama-2-70b, or a config.json.
    #[arg(long, value_name = "NAME|FILE")]
    pub shape: String,
    /// Blocks to quantize, the first ones.
    #[arg(long, default_value_t = 1, value_name = "K")]
    pub blocks: usize,
    /// Windows of random tokens.
    #[arg(long, default_value_t = DEFAULT_SAMPLES, value_name = "N")]
    pub samples: usize,
    /// Tokens per window.
    #[arg(long, default_value_t = DEFAULT_SEQ_LEN, value_name = "N")]
    pub seq_len: usize,
    /// Seed of weights and tokens.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Write a record of the measurement.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Time every kernel of a GPU, and write what ran when in the Chrome trace format.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// What --json or --report wrote, of one run or of several.
    #[arg(required = true, value_name = "FILE.json")]
    pub files: Vec<PathBuf>,
    /// Page to write; a file of this name is replaced.
    #[arg(long, value_name = "FILE.html")]
    pub out: PathBuf,
    /// Heading of the page [default: that of the one file, or how many runs are compared].
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub device: DeviceArg,
}

impl MethodArgs {
    /// The options for `model`, with the calibration of `text`.
    pub fn options(&self, text: &CalibrationArgs, model: &ModelConfig) -> QuantizeOptions {
        let Self { method, bits, group_size, alpha, .. } = *self;
        self.details.options(&Variant { method, bits, group_size, alpha, seed: text.seed }, text, model)
    }
}

impl SweepArgs {
    /// The options that the sweep varies.
    pub fn axes(&self) -> Axes {
        Axes {
            methods: self.methods.clone(),
            bits: self.bits.clone(),
            group_sizes: self.group_sizes.clone(),
            alphas: self.alphas.clone(),
            seeds: if self.seeds.is_empty() { vec![self.calibration.seed] } else { self.seeds.clone() },
        }
    }
}

impl CalibrationArgs {
    /// Tokens per window for `model`.
    pub fn seq_len(&self, model: &ModelConfig) -> usize {
        self.seq_len.unwrap_or(DEFAULT_SEQ_LEN.min(model.max_position_embeddings))
    }
}

impl DetailArgs {
    /// The options of `variant` for `model`, with the calibration of `text`.
    pub fn options(&self, variant: &Variant, text: &CalibrationArgs, model: &ModelConfig) -> QuantizeOptions {
        let symmetry = match (self.sym, self.asym) {
            (true, _) => Symmetry::Symmetric,
            (_, true) => Symmetry::Asymmetric,
            _ => default_symmetry(variant.bits),
        };
        let order = if self.no_act_order { ActivationOrder::Natural } else { ActivationOrder::Descending };
        QuantizeOptions {
            format: None,
            mixture: None,
            method: variant.method,
            bits: variant.bits,
            bits_for: self.bits_for.clone(),
            skip: self.skip.clone(),
            lm_head: self.lm_head,
            rotation: self.rotation,
            group_size: variant.group_size,
            symmetry,
            grid: self.grid,
            activation_order: order,
            descent_passes: self.descent,
            alpha: AlphaPolicy {
                default: variant.alpha,
                overrides: self.alpha_for.clone(),
                shrinkage: self.alpha_shrinkage,
            },
            correction_damping: self.correction_damping,
            rounding_damping: self.rounding_damping,
            samples: text.samples.unwrap_or(DEFAULT_SAMPLES),
            seq_len: text.seq_len(model),
            sampling: text.sampling,
            seed: variant.seed,
            ..QuantizeOptions::default()
        }
    }
}

/// Takes the name of a format, and lists all of them in the help.
fn format_parser() -> impl TypedValueParser<Value = &'static dyn Format> {
    let value = |format: &&dyn Format| PossibleValue::new(format.name()).help(format.summary());
    let names = PossibleValuesParser::new(formats::FORMATS.iter().map(value));
    names.try_map(|name| formats::named(&name).ok_or("no such format"))
}

fn parse_grid(text: &str) -> Result<Search, String> {
    match text {
        "minmax" => Ok(Search::MinMax),
        "mse" => Ok(Search::Mse),
        "hessian" => Ok(Search::Weighted),
        _ => Err(format!("found '{text}', expected minmax, mse or hessian")),
    }
}

fn parse_sampling(text: &str) -> Result<Sampling, String> {
    match text {
        "random" => Ok(Sampling::Random),
        "sequential" => Ok(Sampling::Sequential),
        _ => Err(format!("found '{text}', expected random or sequential")),
    }
}

fn parse_group_size(text: &str) -> Result<GroupSize, String> {
    match text {
        "auto" => Ok(GroupSize::Auto),
        "-1" => Ok(GroupSize::PerChannel),
        _ => match text.parse() {
            Ok(size) if size > 0 => Ok(GroupSize::Columns(size)),
            _ => Err(format!("found '{text}', expected auto, a positive number, or -1 for one grid per row")),
        },
    }
}

fn parse_rotation(text: &str) -> Result<RotationKind, String> {
    match text {
        "kronecker" => Ok(RotationKind::Kronecker),
        "hadamard" => Ok(RotationKind::Hadamard),
        _ => Err(format!("found '{text}', expected kronecker or hadamard")),
    }
}

fn parse_override(text: &str) -> Result<(Regex, Alpha), String> {
    let (pattern, value) = parse_rule(text)?;
    Ok((pattern, value.parse()?))
}

fn parse_bits_for(text: &str) -> Result<(Regex, u32), String> {
    let (pattern, value) = parse_rule(text)?;
    let bits = value.parse().map_err(|_| format!("found '{value}' bits, expected 2, 3, 4 or 8"))?;
    Ok((pattern, bits))
}

/// PATTERN=VALUE.
fn parse_rule(text: &str) -> Result<(Regex, &str), String> {
    let (pattern, value) = text.rsplit_once('=').ok_or(format!("found '{text}', expected PATTERN=VALUE"))?;
    let pattern = Regex::new(pattern).map_err(|e| format!("'{pattern}' is no regular expression: {e}"))?;
    Ok((pattern, value))
}
