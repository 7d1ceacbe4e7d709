//! The options, as clap sees them, and what they mean to the library.

use std::path::PathBuf;

use aquatint::device::Choice;
use aquatint::ops::grid::{Search, Symmetry};
use aquatint::quant::options::default_symmetry;
use aquatint::quant::{ActivationOrder, Alpha, AlphaPolicy, GroupSize, Method, QuantizeOptions};
use aquatint::{GenerateOptions, Sampling};
use clap::{Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

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
    /// Quantize a checkpoint.
    Quantize(Box<QuantizeArgs>),
    /// Measure perplexity on a text, of an ordinary or a quantized checkpoint.
    Eval(EvalArgs),
    /// Continue a text, with an ordinary or a quantized checkpoint.
    Generate(GenerateArgs),
    /// Quantize the bundled model four ways and print one table.
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
pub struct DeviceArg {
    /// auto, cpu, gpu, or the number or name of an adapter from `aquatint devices`.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: Choice,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FormatArg {
    /// GPTQ layout, for transformers, GPTQModel and vLLM.
    Gptq,
    /// The dequantized weights as an ordinary checkpoint.
    Float,
}

#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// A Hugging Face checkpoint directory; left out, the bundled tiny LLaMA.
    pub model: Option<PathBuf>,
    /// Directory to write; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace --out if it has files in it.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub text: CalibrationArgs,
    #[command(flatten)]
    pub device: DeviceArg,
    /// How to store the result.
    #[arg(long, value_enum, default_value = "gptq")]
    pub format: FormatArg,
    /// Write a record of the run: options, α and errors per layer, errors per block, times.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Check everything and say what would be done, without doing it.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct MethodArgs {
    /// Base quantizer.
    #[arg(long, value_parser = parse_method, default_value = "gptq", value_name = "rtn|gptq")]
    pub method: Method,
    /// Bits per weight: 2, 3, 4 or 8.
    #[arg(long, default_value_t = 4, value_name = "BITS")]
    pub bits: u32,
    /// Inputs per grid: auto (the largest of 128, 64, 32 that divides every width), a number, or -1 for one per row.
    #[arg(long, default_value = "auto", value_parser = parse_group_size, allow_hyphen_values = true, value_name = "auto|N|-1")]
    pub group_size: GroupSize,
    /// Zero points fixed in the middle [default at 4 and 8 bits].
    #[arg(long, conflicts_with = "asym")]
    pub sym: bool,
    /// Zero points chosen freely [default at 2 and 3 bits].
    #[arg(long)]
    pub asym: bool,
    /// How grids are chosen: by the extremes, by the errors of weights, or by what these add to GPTQ's loss (with RTN as mse).
    #[arg(long, value_parser = parse_grid, default_value = "mse", value_name = "minmax|mse|hessian")]
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
    /// Propagation strength: auto (per layer, from held-out windows), off, or a number from 0 to 1.
    #[arg(long, default_value = "auto", value_name = "auto|off|0..1")]
    pub alpha: Alpha,
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
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens per window.
    #[arg(long, value_name = "N")]
    pub seq_len: usize,
    /// Windows, the first ones of the text [default: all].
    #[arg(long, value_name = "N")]
    pub windows: Option<usize>,
    /// Another checkpoint to compare with on the same tokens: KL divergence and top-1 agreement.
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Write the result.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
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
pub struct DemoArgs {
    #[command(flatten)]
    pub device: DeviceArg,
}

impl MethodArgs {
    /// The options, with the calibration left at `samples` × `seq_len`.
    pub fn options(&self, text: &CalibrationArgs, samples: usize, seq_len: usize) -> QuantizeOptions {
        let symmetry = match (self.sym, self.asym) {
            (true, _) => Symmetry::Symmetric,
            (_, true) => Symmetry::Asymmetric,
            _ => default_symmetry(self.bits),
        };
        let order = if self.no_act_order { ActivationOrder::Natural } else { ActivationOrder::Descending };
        QuantizeOptions {
            method: self.method,
            bits: self.bits,
            group_size: self.group_size,
            symmetry,
            grid: self.grid,
            activation_order: order,
            descent_passes: self.descent,
            alpha: AlphaPolicy {
                default: self.alpha,
                overrides: self.alpha_for.clone(),
                shrinkage: self.alpha_shrinkage,
            },
            correction_damping: self.correction_damping,
            rounding_damping: self.rounding_damping,
            samples,
            seq_len,
            sampling: text.sampling,
            seed: text.seed,
            ..QuantizeOptions::default()
        }
    }
}

fn parse_method(text: &str) -> Result<Method, String> {
    match text {
        "rtn" => Ok(Method::Rtn),
        "gptq" => Ok(Method::Gptq),
        _ => Err(format!("found '{text}', expected rtn or gptq")),
    }
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

fn parse_override(text: &str) -> Result<(Regex, Alpha), String> {
    let (pattern, value) = text.rsplit_once('=').ok_or(format!("found '{text}', expected PATTERN=VALUE"))?;
    let pattern = Regex::new(pattern).map_err(|e| format!("'{pattern}' is no regular expression: {e}"))?;
    Ok((pattern, value.parse()?))
}
