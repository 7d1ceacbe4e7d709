//! The block loop of algorithms.md §2: two streams of hidden states, one through original weights only, one through
//! what has been quantized so far; group by group, statistics, correction, rounding, and both streams step on.
//!
//! Between groups a stream is two tensors per chunk (`Lane`), so each linear runs once per stream and token.

mod group;
mod observer;

use std::collections::BTreeMap;

use futures::future::LocalBoxFuture;

use crate::checkpoint::{Checkpoint, CheckpointWriter, QuantizedLinear};
use crate::device::Recorder;
use crate::model::block::{Block, Lane, Stage, widest_activation};
use crate::model::config::{LinearSpec, ModelConfig};
use crate::model::network::{Network, Replacements};
use crate::ops::reduce::{squared_difference, sum_squares, total};
use crate::quant::{Alpha, Method, QuantizeOptions, Statistics};
use crate::report::{BlockReport, Report, group_name};
use crate::tensor::Tensor;
use crate::{Error, Result};
use group::{Gathered, GroupQuantizer, Linear, Outcome};
pub use observer::{Event, Observer, Phase};

/// Where quantized layers go, in model order.
pub trait Output {
    /// Takes one layer.
    fn put(&mut self, linear: QuantizedLinear) -> LocalBoxFuture<'_, Result<()>>;
}

impl Output for CheckpointWriter<'_> {
    fn put(&mut self, linear: QuantizedLinear) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async move { self.put_linear(&linear).await })
    }
}

/// Keeps the layers in memory, to evaluate them without a checkpoint.
impl Output for Replacements {
    fn put(&mut self, linear: QuantizedLinear) -> LocalBoxFuture<'_, Result<()>> {
        self.insert(linear.name.clone(), linear);
        Box::pin(async { Ok(()) })
    }
}

/// Quantizes every linear of every block of `checkpoint`, calibrated on `windows`, and hands them to `output`.
///
/// `windows`: `options.samples` windows of `options.seq_len` tokens; the last `options.held_out()` are held out.
/// Errors: `Error::Input` for options that do not fit the model, `Error::NotFinite` if a stream overflows,
/// `Error::Cancelled`, and what the device and the output report.
pub async fn quantize(
    rec: &mut Recorder,
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    options: &QuantizeOptions,
    output: &mut dyn Output,
    observer: &mut dyn Observer,
) -> Result<Report> {
    options.validate()?;
    let started = observer.seconds();
    let network = Network::new(rec, checkpoint, None, options.seq_len)?;
    let mut run = Run::start(rec, network, windows, options, observer).await?;
    for index in 0..run.network.config().num_hidden_layers {
        run.block(rec, index, output, observer).await?;
    }
    run.report.total_seconds = observer.seconds() - started;
    Ok(run.report)
}

/// The streams and the record of a run.
struct Run<'a> {
    network: Network<'a>,
    options: &'a QuantizeOptions,
    /// S and Ŝ: the hidden states of each chunk, before the block in hand.
    full: Vec<Tensor>,
    quantized: Vec<Tensor>,
    /// The chunks from this one on are held out.
    held_out_from: usize,
    report: Report,
}

/// A block in hand: both streams inside it, and the names and original weights of its linears.
struct Open<'a> {
    index: usize,
    block: &'a Block,
    specs: &'a [LinearSpec],
    weights: &'a [Tensor],
    full: Vec<Lane>,
    quantized: Vec<Lane>,
}

impl<'a> Run<'a> {
    async fn start(
        rec: &mut Recorder,
        network: Network<'a>,
        windows: &[Vec<u32>],
        options: &'a QuantizeOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let config = network.config();
        let per_chunk = network.sequences_per_chunk(rec)?;
        let (fitting, held_out) = windows.split_at(windows.len() - options.held_out());
        let chunks: Vec<&[Vec<u32>]> = fitting.chunks(per_chunk).chain(held_out.chunks(per_chunk)).collect();
        let tokens = windows.len() * options.seq_len;
        let held_out_tokens = held_out.len() * options.seq_len;
        let group_size = options.group_size.resolve(config);
        observer.event(&Event::Planned {
            blocks: config.num_hidden_layers,
            tokens,
            held_out: held_out_tokens,
            group_size,
            bytes: device_bytes(config, tokens, per_chunk * options.seq_len),
        });
        network.check_head(rec).await?;
        let full = network.embed(rec, &chunks).await?;
        let quantized = full.iter().map(|chunk| rec.duplicate(chunk)).collect::<Result<_>>()?;
        let report = Report {
            aquatint: env!("CARGO_PKG_VERSION"),
            device: rec.device().name(),
            options: options.clone(),
            group_size,
            tokens,
            held_out_tokens,
            layers: Vec::new(),
            blocks: Vec::new(),
            seconds: BTreeMap::new(),
            total_seconds: 0.0,
        };
        let held_out_from = fitting.chunks(per_chunk).len();
        Ok(Self { network, options, full, quantized, held_out_from, report })
    }

    async fn block(
        &mut self,
        rec: &mut Recorder,
        index: usize,
        output: &mut dyn Output,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let since = observer.seconds();
        let (block, weights) = self.network.block(rec, index).await?;
        let specs = self.network.config().block_linears(index);
        self.spent(rec, Phase::Load, since, observer).await?;
        let since = observer.seconds();
        let enter = |rec: &mut Recorder, hidden: Vec<Tensor>| -> Result<Vec<Lane>> {
            hidden.into_iter().map(|hidden| block.enter(rec, hidden)).collect()
        };
        let full = enter(rec, std::mem::take(&mut self.full))?;
        let quantized = enter(rec, std::mem::take(&mut self.quantized))?;
        self.spent(rec, Phase::Forward, since, observer).await?;
        let mut open = Open { index, block: &block, specs: &specs, weights: &weights, full, quantized };
        for stage in Stage::ALL {
            if observer.cancelled() {
                return Err(Error::Cancelled);
            }
            self.stage(rec, &mut open, stage, output, observer).await?;
            observer.event(&Event::Group { block: index, stage });
        }
        let Open { full, quantized, .. } = open;
        self.full = full.into_iter().map(|lane| lane.hidden).collect();
        self.quantized = quantized.into_iter().map(|lane| lane.hidden).collect();
        let delta = self.stream_error(rec, index).await?;
        self.report.blocks.push(BlockReport { block: index, delta, error: delta.sqrt() });
        observer.event(&Event::Block { block: index, error: delta.sqrt() });
        Ok(())
    }

    /// Quantizes the linears of `stage` and takes both streams past them.
    async fn stage(
        &mut self,
        rec: &mut Recorder,
        open: &mut Open<'_>,
        stage: Stage,
        output: &mut dyn Output,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let linears: Vec<Linear<'_>> = stage
            .linears()
            .map(|i| (&open.specs[i].name, &open.weights[i]))
            .map(|(name, weight)| Linear { name, weight, alpha: self.options.alpha.of(name) })
            .collect();
        let mut outcomes = self.quantize_group(rec, open, stage, &linears, observer).await?;
        let rounded: Vec<Tensor> = outcomes.iter_mut().map(|o| take(rec, &mut o.dequantized)).collect::<Result<_>>()?;
        self.begin(open.index, stage, Phase::Forward, observer);
        let since = observer.seconds();
        self.advance(rec, open, stage, &rounded, &mut outcomes).await?;
        self.spent(rec, Phase::Forward, since, observer).await?;
        self.begin(open.index, stage, Phase::Write, observer);
        let since = observer.seconds();
        for outcome in outcomes {
            self.report.layers.push(outcome.report);
            output.put(outcome.stored).await?;
        }
        self.spent(rec, Phase::Write, since, observer).await
    }

    async fn quantize_group(
        &mut self,
        rec: &mut Recorder,
        open: &Open<'_>,
        stage: Stage,
        linears: &[Linear<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Outcome>> {
        let place = group_name(open.index, stage);
        let quantizer = GroupQuantizer { options: self.options, group_size: self.report.group_size, place: &place };
        let correlate = linears.iter().any(|linear| linear.alpha != Alpha::Off);
        if !correlate && self.options.method == Method::Rtn {
            self.begin(open.index, stage, Phase::Rounding, observer);
            let since = observer.seconds();
            let outcomes = quantizer.round_plain(rec, linears).await?;
            self.spent(rec, Phase::Rounding, since, observer).await?;
            return Ok(outcomes);
        }
        self.begin(open.index, stage, Phase::Statistics, observer);
        let since = observer.seconds();
        let gathered = self.gather(rec, open, correlate)?;
        self.spent(rec, Phase::Statistics, since, observer).await?;
        self.begin(open.index, stage, Phase::Correction, observer);
        let since = observer.seconds();
        let (prepared, candidates) = quantizer.correct(rec, linears, gathered).await?;
        self.spent(rec, Phase::Correction, since, observer).await?;
        self.begin(open.index, stage, Phase::Rounding, observer);
        let since = observer.seconds();
        let outcomes = quantizer.round(rec, linears, &prepared, candidates).await?;
        self.spent(rec, Phase::Rounding, since, observer).await?;
        Ok(outcomes)
    }

    /// H and D of the input that all linears of the group in hand read.
    fn gather(&self, rec: &mut Recorder, open: &Open<'_>, correlate: bool) -> Result<Gathered> {
        let n = open.full[0].input.shape()[1];
        let mut fitting = Statistics::zeros(rec, n, correlate)?;
        let held = self.held_out_from < open.full.len();
        let mut held_out = if held { Some(Statistics::zeros(rec, n, correlate)?) } else { None };
        for (index, (full, quantized)) in open.full.iter().zip(&open.quantized).enumerate() {
            let part = if index < self.held_out_from { Some(&mut fitting) } else { held_out.as_mut() };
            if let Some(part) = part {
                part.accumulate(rec, &full.input, &quantized.input)?;
            }
        }
        Ok(Gathered { fitting, held_out })
    }

    /// Both streams past the linears of `stage`, each through its own weights; fills in the measured layer errors.
    async fn advance(
        &self,
        rec: &mut Recorder,
        open: &mut Open<'_>,
        stage: Stage,
        rounded: &[Tensor],
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        let mut sums = vec![[Sum::default(); 2]; outcomes.len()];
        let originals = &open.weights[stage.linears()];
        for (index, (full, quantized)) in open.full.iter_mut().zip(&mut open.quantized).enumerate() {
            let part = usize::from(index >= self.held_out_from);
            let exact = open.block.project(rec, originals, full)?;
            let approximate = open.block.project(rec, rounded, quantized)?;
            for ((exact, approximate), sums) in exact.iter().zip(&approximate).zip(&mut sums) {
                sums[part].add(rec, exact, approximate).await?;
            }
            open.block.fold(rec, stage, exact, &mut self.network.context(), full)?;
            open.block.fold(rec, stage, approximate, &mut self.network.context(), quantized)?;
        }
        for (outcome, [fitted, held_out]) in outcomes.iter_mut().zip(&sums) {
            outcome.report.error_fitted = fitted.relative(&outcome.report.name)?;
            if self.held_out_from < open.full.len() {
                outcome.report.error_held_out = Some(held_out.relative(&outcome.report.name)?);
                let before = outcome.score_gain.map(|gain| (held_out.error + gain) / held_out.norm);
                outcome.report.error_held_out_uncorrected = before.filter(|error| error.is_finite());
            }
        }
        Ok(())
    }

    /// Δ_m = ‖S − Ŝ‖²/‖S‖² over all tokens.
    async fn stream_error(&self, rec: &mut Recorder, index: usize) -> Result<f64> {
        let mut sum = Sum::default();
        for (full, quantized) in self.full.iter().zip(&self.quantized) {
            sum.add(rec, full, quantized).await?;
        }
        sum.relative(&format!("the hidden states after block {index}"))
    }

    fn begin(&self, block: usize, stage: Stage, phase: Phase, observer: &mut dyn Observer) {
        observer.event(&Event::Phase { block, stage, phase });
    }

    /// Waits for the device and books the time since `since` under `phase`.
    async fn spent(&mut self, rec: &mut Recorder, phase: Phase, since: f64, observer: &mut dyn Observer) -> Result<()> {
        rec.finish().await?;
        *self.report.seconds.entry(phase).or_default() += observer.seconds() - since;
        Ok(())
    }
}

/// ‖y − ŷ‖² and ‖y‖² over some tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    error: f64,
    norm: f64,
}

impl Sum {
    async fn add(&mut self, rec: &mut Recorder, exact: &Tensor, approximate: &Tensor) -> Result<()> {
        let (error, norm) = (squared_difference(rec, exact, approximate)?, sum_squares(rec, exact)?);
        self.error += total(rec, &error).await?;
        self.norm += total(rec, &norm).await?;
        Ok(())
    }

    /// The quotient, 0 if nothing differs. Errors: `Error::NotFinite` naming `place`.
    fn relative(&self, place: &str) -> Result<f64> {
        let quotient = if self.error == 0.0 { 0.0 } else { self.error / self.norm };
        if quotient.is_finite() {
            return Ok(quotient);
        }
        Err(Error::NotFinite {
            place: place.to_string(),
            remedy: "the quantized model has broken down; use more bits, smaller groups or --alpha off".to_string(),
        })
    }
}

/// Takes a tensor out of a place that is not needed again.
fn take(rec: &mut Recorder, place: &mut Tensor) -> Result<Tensor> {
    Ok(std::mem::replace(place, rec.empty(&[0])?))
}

/// The device memory of a run at its peak, in bytes, about: streams, one block twice, and the statistics of its widest group.
pub fn device_bytes(config: &ModelConfig, tokens: usize, chunk_tokens: usize) -> u64 {
    let [tokens, chunk_tokens] = [tokens, chunk_tokens].map(|count| count as u64);
    let widest = widest_activation(config) as u64;
    let streams = 2 * tokens * (config.hidden_size as u64 + widest);
    let weights: u64 = config.block_linears(0).iter().map(|linear| linear.rows as u64 * linear.columns as u64).sum();
    let transient = 4 * chunk_tokens * widest;
    // H and D, fitted and held out, the factor, and their unpacked forms.
    let statistics = 9 * widest * widest;
    (streams + 2 * weights + transient + statistics) * 4
}

/// The largest array of a run, in bytes: what the device must be able to bind.
///
/// A weight, D of the widest group, or one sequence's widest activation; longer things are cut into pieces.
pub fn largest_array(config: &ModelConfig, seq_len: usize) -> u64 {
    let weights = config.block_linears(0).into_iter().map(|linear| linear.rows as u64 * linear.columns as u64);
    let correlations = config.block_linears(0).into_iter().map(|linear| (linear.columns as u64).pow(2));
    let activation = seq_len as u64 * widest_activation(config) as u64;
    weights.chain(correlations).chain([activation]).max().unwrap_or(0) * 4
}
