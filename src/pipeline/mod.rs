//! Quantizes a model block by block (algorithms.md §2). `study` and the front ends call [`quantize`] or
//! [`quantize_together`].
//!
//! Two streams of hidden states pass through the model. The full-precision stream S passes through the original weights
//! only. The quantized stream Ŝ passes through the weights that are quantized so far. A stop is a group of linear
//! layers with one input. At each stop, the pipeline accumulates the statistics of both inputs, corrects and rounds the
//! weights, and takes both streams on to the next stop.
//!
//! A cut (`family::Cut`) says which values a stream keeps at a stop. It follows from the description of the block, and
//! each linear layer runs once per stream and token unless the plan saves memory by running it again. Several runs over
//! the same windows can pass through the blocks together. Each has its own quantized stream, and all share the
//! full-precision stream.
//!
//! Here is the loop over blocks and stops. `run` holds one run, `stop` a stop, `stream` a stream, `planner` the use of
//! memory, `fold` the scales of AWQ, and `journal` the records of finished blocks.

pub mod fold;
mod journal;
mod planner;
mod run;
mod scratch;
mod stop;
mod stream;
mod sums;
mod treatment;
mod work;

use std::collections::BTreeMap;

use futures::future::LocalBoxFuture;

use crate::checkpoint::{Checkpoint, CheckpointWriter};
use crate::device::{Place, Recorder, Tensor};
use crate::engine::block::Block;
use crate::engine::network::Network;
use crate::error::{Setting, phrase};
use crate::family::{Cut, LinearSpec};
use crate::observer::{Event, Group, Observer};
use crate::ops::reduce::sum_squares;
use crate::quant::QuantizeOptions;
use crate::record::{Phase, Report};
use crate::stored::{Replacements, StoredLinear};
use crate::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use journal::DirectoryJournal;
pub use journal::{BlockRecord, Journal};
use planner::chunks_before_blocks;
pub use planner::{largest_array, plan, roomy_plan};
use run::{QuantizedGroup, Run};
use stop::{Stop, WeightsByNode};
use stream::Stream;
use sums::Sums;
pub use treatment::Treatment;
pub use work::work;

/// A destination for quantized layers. It receives them in model order.
pub trait Output {
    /// Receives the new values of a norm or a bias, before the layers of the same block. The stored type of the tensor
    /// represents the values exactly.
    fn put_tensor(&mut self, name: String, values: Vec<f32>) -> Result<()>;

    /// Receives one layer.
    fn put(&mut self, linear: StoredLinear) -> LocalBoxFuture<'_, Result<()>>;
}

impl Output for CheckpointWriter<'_> {
    fn put_tensor(&mut self, name: String, values: Vec<f32>) -> Result<()> {
        CheckpointWriter::put_tensor(self, name, &values)
    }

    fn put(&mut self, linear: StoredLinear) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async move { self.put_linear(&linear).await })
    }
}

/// Keeps the layers in memory, so that they can be evaluated without writing a checkpoint.
impl Output for Replacements {
    fn put_tensor(&mut self, name: String, values: Vec<f32>) -> Result<()> {
        self.insert_tensor(name, values);
        Ok(())
    }

    fn put(&mut self, linear: StoredLinear) -> LocalBoxFuture<'_, Result<()>> {
        self.insert(linear.name().to_string(), linear);
        Box::pin(async { Ok(()) })
    }
}

/// One of several runs over the same windows.
pub struct Job<'a> {
    /// The options of the run.
    pub options: &'a QuantizeOptions,
    /// The destination of the quantized layers.
    pub output: &'a mut dyn Output,
    /// The records of the blocks that are already done. The run adds the records of the other blocks. `None` keeps no
    /// records.
    pub journal: Option<&'a mut dyn Journal>,
}

impl<'a> Job<'a> {
    /// A run that starts at the first block and keeps no records.
    pub fn new(options: &'a QuantizeOptions, output: &'a mut dyn Output) -> Self {
        Self { options, output, journal: None }
    }
}

/// Quantizes the linear layers of all blocks of `checkpoint`, and the output matrix if the options say so, and hands
/// them to `output`. Layers that the options skip keep their weights.
///
/// `windows`: the calibration windows, `options.samples` windows of `options.seq_len` tokens each. The last
/// `options.held_out()` windows are held out. [`Treatment::validate`] checks the options against the model; callers do
/// so before.
///
/// Errors: `Error::Input` for an option that cannot be used, or for a model that does not fit the device or its memory;
/// `Error::Shape` if the number of windows is not `options.samples`; `Error::NotFinite` if numbers overflow;
/// `Error::Cancelled`; those of the checkpoint, the device and `output`.
pub async fn quantize(
    rec: &mut Recorder,
    checkpoint: &Checkpoint,
    windows: &[Vec<u32>],
    options: &QuantizeOptions,
    output: &mut dyn Output,
    observer: &mut dyn Observer,
) -> Result<Report> {
    let mut reports = quantize_together(rec, checkpoint, windows, vec![Job::new(options, output)], observer).await?;
    reports.swap_remove(0)
}

/// Does the work of several calls of [`quantize`] at once, block by block, with one full-precision stream for all runs.
/// The results are the same to the bit. This takes less time and more memory than separate calls.
///
/// All jobs must have the same `samples` and `seq_len`. In the reports, time that served all runs is divided equally
/// among them. No jobs give no reports.
///
/// Errors: as [`quantize`]. An `Error::NotFinite` in one run is the result of this run alone, and the other runs
/// continue.
pub async fn quantize_together<'a>(
    rec: &mut Recorder,
    checkpoint: &'a Checkpoint,
    windows: &[Vec<u32>],
    jobs: Vec<Job<'a>>,
    observer: &mut dyn Observer,
) -> Result<Vec<Result<Report>>> {
    let Some(seq_len) = jobs.first().map(|job| job.options.seq_len) else { return Ok(Vec::new()) };
    for job in &jobs {
        job.options.validate()?;
        if job.options.seq_len != seq_len || job.options.samples != windows.len() {
            let detail = format!("{} windows of {seq_len} tokens for {:?}", windows.len(), job.options);
            return Err(Error::shape("quantize_together", detail));
        }
    }
    let started = observer.seconds();
    let network = Network::new(rec, checkpoint, None, seq_len)?;
    let mut session = Session::start(rec, &network, windows, jobs, observer).await?;
    for layer in 0..session.network.config().blocks.len() {
        session.quantize_block(rec, layer, observer).await?;
    }
    session.quantize_head(rec, observer).await?;
    Ok(session.finish(observer.seconds() - started, rec.device().peak_bytes()))
}

/// The full-precision stream and the runs that share it, on their way through the blocks.
struct Session<'n, 'a> {
    network: &'n Network<'a>,
    /// S, the full-precision stream.
    full: Stream,
    /// The index of the first held-out chunk. The held-out chunks are the last ones.
    held_out_from: usize,
    /// Whether streams keep fewer values at a stop and compute the others again, according to the plan.
    remake: bool,
    runs: Vec<Run<'a>>,
    /// The original weights of the next stop, if they are already on their way to a GPU.
    next_weights: Option<Vec<Tensor>>,
    /// Whether the journals hold every block of every run and no run quantizes the output matrix. The streams then need
    /// not move.
    all_recorded: bool,
}

/// The stops of the current block, and what all streams share there.
struct BlockStops {
    layer: usize,
    block: Block,
    cuts: Vec<Cut>,
    specs: Vec<LinearSpec>,
    /// The original weights of those earlier stops of the block through which chunks pass again.
    earlier: WeightsByNode,
}

impl BlockStops {
    fn new(layer: usize, block: Block, remake: bool) -> Self {
        let (cuts, specs) = (block.line().cuts(remake), Vec::new());
        let mut stops = Self { layer, block, cuts, specs, earlier: WeightsByNode::new() };
        stops.specs = stops.block.line().groups().flatten().map(|linear| linear.at(layer)).collect();
        stops
    }

    /// The number of stops.
    fn count(&self) -> usize {
        self.cuts.len() - 1
    }

    /// Stop number `stop` as observers see it.
    fn group(&self, stop: usize) -> Group {
        let label = self.block.line().label(self.cuts[stop].node);
        Group { block: self.layer, index: stop, groups: self.count(), label }
    }

    /// The linear layers of stop number `stop`.
    fn specs(&self, stop: usize) -> &[LinearSpec] {
        let mut groups = self.block.line().groups().map(<[_]>::len);
        let first: usize = groups.by_ref().take(stop).sum();
        &self.specs[first..first + groups.next().unwrap_or(0)]
    }

    /// Whether chunks pass through the linear layers of stop number `stop` again at a later stop.
    fn is_run_again(&self, stop: usize) -> bool {
        let node = self.cuts[stop].node;
        self.cuts.iter().any(|cut| cut.remade.contains(&node))
    }
}

impl<'n, 'a> Session<'n, 'a> {
    /// Plans the memory, checks the head, and embeds all windows into the streams. Chunks of fitting tokens come before
    /// chunks of held-out tokens.
    async fn start(
        rec: &mut Recorder,
        network: &'n Network<'a>,
        windows: &[Vec<u32>],
        jobs: Vec<Job<'a>>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let config = network.config();
        let options = jobs[0].options;
        let runs: Vec<&QuantizeOptions> = jobs.iter().map(|job| job.options).collect();
        let plan = plan(config, &runs, rec)?;
        rec.limit_unused(plan.device_bytes, plan.spare_bytes);
        let per_chunk = plan.sequences_per_chunk;
        let (fitting, held_out) = windows.split_at(windows.len() - options.held_out());
        let chunks: Vec<&[Vec<u32>]> = fitting.chunks(per_chunk).chain(held_out.chunks(per_chunk)).collect();
        let tokens = windows.len() * options.seq_len;
        let held_out_tokens = held_out.len() * options.seq_len;
        observer.event(&Event::Planned {
            runs: jobs.len(),
            blocks: config.blocks.len(),
            groups: config.blocks.iter().map(|block| block.stops().count()).sum(),
            tokens,
            held_out: held_out_tokens,
            group_size: Treatment::new(options, config).group_size(),
            plan,
        });
        network.check_head(rec).await?;
        let mut runs = Vec::new();
        for job in jobs {
            let report = Report {
                aquatint: env!("CARGO_PKG_VERSION").to_string(),
                device: rec.device().name(),
                precision: rec.device().precision(),
                options: job.options.clone(),
                group_size: Treatment::new(job.options, config).group_size(),
                tokens,
                held_out_tokens,
                layers: Vec::new(),
                blocks: Vec::new(),
                seconds: BTreeMap::new(),
                total_seconds: 0.0,
                plan: Some(plan),
                peak_device_bytes: None,
            };
            runs.push(Run::new(job, Stream::new(rec, plan.streams)?, report));
        }
        let mut full = Stream::new(rec, plan.streams)?;
        let together = match plan.streams {
            Place::Device => chunks.len(),
            Place::Host | Place::File => chunks_before_blocks(config, per_chunk * options.seq_len),
        };
        for chunks in chunks.chunks(together) {
            for hidden in network.embed(rec, chunks).await? {
                for run in &mut runs {
                    let copy = rec.duplicate(&hidden)?;
                    run.stream.push(rec, copy).await?;
                }
                full.push(rec, hidden).await?;
            }
        }
        wait_for_transfers(rec, [&mut full].into_iter().chain(runs.iter_mut().map(|run| &mut run.stream))).await?;
        let held_out_from = fitting.chunks(per_chunk).len();
        let blocks = config.blocks.len();
        let all_recorded = runs.iter().all(|run| run.recorded() >= blocks && !run.quantizes_head());
        Ok(Self { network, full, held_out_from, remake: plan.recompute, runs, next_weights: None, all_recorded })
    }

    /// Completes the reports. `seconds`: the duration of the session, whose unbooked part is divided equally among the
    /// runs; `peak`: the peak size of all arrays on a GPU, in bytes.
    fn finish(mut self, seconds: f64, peak: Option<u64>) -> Vec<Result<Report>> {
        self.runs.iter_mut().for_each(|run| run.report.peak_device_bytes = peak);
        let booked = self.runs.iter().map(Run::booked).sum::<f64>();
        let rest = (seconds - booked) / self.runs.len() as f64;
        self.runs.into_iter().map(|run| run.finish(rest)).collect()
    }

    /// The runs that have not failed.
    fn active_runs(&mut self) -> impl Iterator<Item = &mut Run<'a>> {
        self.runs.iter_mut().filter(|run| run.is_active())
    }

    /// Takes all runs through block `layer`: all of its stops, then the measurement and the output. Recorded runs take
    /// their results from the journal.
    async fn quantize_block(&mut self, rec: &mut Recorder, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        if self.active_runs().next().is_none() {
            return Ok(());
        }
        for run in self.active_runs() {
            run.begin_block(layer)?;
        }
        if !self.all_recorded {
            let since = observer.seconds();
            let block = self.network.block(rec, layer).await?;
            self.book_since(rec, Phase::Load, since, observer).await?;
            let mut stops = BlockStops::new(layer, block, self.remake);
            for stop in 0..stops.count() {
                self.quantize_stop(rec, &mut stops, stop, observer).await?;
            }
            let outputs = &stops.block.line().outputs;
            self.full.leave_block(outputs);
            self.runs.iter_mut().for_each(|run| run.stream.leave_block(outputs));
        }
        self.finish_block(rec, layer, observer).await
    }

    /// Quantizes the linear layers of stop number `index` in every run, and takes all streams to the next cut.
    async fn quantize_stop(
        &mut self,
        rec: &mut Recorder,
        stops: &mut BlockStops,
        index: usize,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let since = observer.seconds();
        let node = stops.cuts[index].node;
        let weights = match self.next_weights.take() {
            Some(weights) => weights,
            None => self.network.weights(rec, stops.layer, node).await?,
        };
        let next = self.next_stop(stops, index);
        if let Some((layer, node)) = next {
            self.network.prefetch(layer, node);
        }
        self.book_since(rec, Phase::Load, since, observer).await?;
        let (network, group) = (self.network, stops.group(index));
        let stop = Stop {
            checkpoint: network.checkpoint(),
            place: format!("block {}, {}", group.block, group.label),
            group: Some(group.clone()),
            layer: stops.layer,
            block: &stops.block,
            cut: &stops.cuts[index],
            next: &stops.cuts[index + 1],
            specs: stops.specs(index),
            weights: &weights,
            earlier: &stops.earlier,
            ropes: network.ropes(),
            positions: network.positions(),
            chunks: self.full.chunks(),
            held_out_from: self.held_out_from,
        };
        let mut quantized = Vec::new();
        for run in &mut self.runs {
            observer.go_on()?;
            let group = match run.is_active() {
                true => run.quantize(rec, &stop, &self.full, observer).await,
                false => Ok(QuantizedGroup::default()),
            };
            quantized.push(run.absorb_failure(group)?);
        }
        stop.announce(Phase::Forward, observer);
        let since = observer.seconds();
        let (errors, norms) = advance(rec, &stop, (&mut self.full, &mut self.runs), &quantized, observer).await?;
        if let Some((layer, node)) = next.filter(|_| rec.is_gpu()) {
            // The upload overlaps with the last work of this group on the GPU.
            self.next_weights = Some(self.network.weights(rec, layer, node).await?);
        }
        let streams = self.runs.iter_mut().map(|run| &mut run.stream);
        wait_for_transfers(rec, [&mut self.full].into_iter().chain(streams)).await?;
        let norms = norms.read(rec, stop.specs.len()).await?;
        self.book_since(rec, Phase::Forward, since, observer).await?;
        let again = stops.is_run_again(index);
        for ((run, group), errors) in
            self.runs.iter_mut().zip(quantized).zip(errors).filter(|((run, _), _)| run.is_active())
        {
            let finished = run.finish_group(rec, &stop, group, (errors, &norms), again).await;
            run.absorb_failure(finished)?;
        }
        if again {
            stops.earlier.insert(node, weights);
        }
        observer.event(&Event::Group(group));
        Ok(())
    }

    /// The stop after stop number `index`, in this block or the next: the number of the block and the index of the
    /// node. `None` after the last stop of the last block.
    fn next_stop(&self, stops: &BlockStops, index: usize) -> Option<(usize, usize)> {
        if index + 1 < stops.count() {
            return Some((stops.layer, stops.cuts[index + 1].node));
        }
        let next = stops.layer + 1;
        Some((next, self.network.config().blocks.get(next)?.stops().next()?))
    }

    /// Quantizes the output matrix in every run that asks for it. The head is treated like a block with one stop.
    async fn quantize_head(&mut self, rec: &mut Recorder, observer: &mut dyn Observer) -> Result<()> {
        if !self.active_runs().any(|run| run.quantizes_head()) {
            return Ok(());
        }
        observer.event(&Event::Head);
        let network = self.network;
        let stops = BlockStops::new(network.config().blocks.len(), network.head_block(rec).await?, false);
        let spec = network.config().head_linear();
        let stop = Stop {
            checkpoint: network.checkpoint(),
            place: spec.name.clone(),
            group: None,
            layer: stops.layer,
            block: &stops.block,
            cut: &stops.cuts[0],
            next: &stops.cuts[1],
            specs: &[spec],
            weights: &[network.output_matrix(rec).await?],
            earlier: &stops.earlier,
            ropes: network.ropes(),
            positions: network.positions(),
            chunks: self.full.chunks(),
            held_out_from: self.held_out_from,
        };
        for run in self.runs.iter_mut().filter(|run| run.is_active()) {
            observer.go_on()?;
            let done = run.quantize_head(rec, &stop, &self.full, observer).await;
            run.absorb_failure(done)?;
        }
        Ok(())
    }

    /// Measures the error of every quantized stream after block `layer`, and hands the block to the outputs.
    async fn finish_block(&mut self, rec: &mut Recorder, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        let mut norm = Sums::default();
        for chunk in 0..self.full.chunks() {
            let hidden = self.full.hidden(rec, chunk)?;
            norm.add(0, 0, sum_squares(rec, &hidden)?);
        }
        let all = norm.read(rec, 1).await?[0][0];
        let mut errors = Vec::new();
        for run in self.runs.iter_mut().filter(|run| run.is_active()) {
            let measured = run.measure_block(rec, layer, &self.full, all).await;
            errors.extend(run.absorb_failure(measured)?);
        }
        observer.event(&Event::Write { block: layer });
        let since = observer.seconds();
        for run in self.runs.iter_mut().filter(|run| run.is_active()) {
            let handed = run.hand_over().await;
            run.absorb_failure(handed)?;
        }
        self.book_since(rec, Phase::Write, since, observer).await?;
        observer.event(&Event::Block { block: layer, errors });
        Ok(())
    }

    /// Waits for the device and books the time since `since` under `phase`. Every active run gets an equal share.
    async fn book_since(
        &mut self,
        rec: &mut Recorder,
        phase: Phase,
        since: f64,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        rec.finish().await?;
        let seconds = observer.seconds() - since;
        let runs = self.active_runs().count() as f64;
        self.active_runs().for_each(|run| run.book(phase, seconds / runs));
        Ok(())
    }
}

/// Takes all streams past the linear layers of `stop` to the next cut, each through its own weights. Returns the sums
/// ‖WX − QX̂‖² of the quantized layers for each run, and the sums ‖WX‖² of all layers of the stop.
async fn advance(
    rec: &mut Recorder,
    stop: &Stop<'_>,
    (full, runs): (&mut Stream, &mut [Run<'_>]),
    quantized: &[QuantizedGroup],
    observer: &dyn Observer,
) -> Result<(Vec<Sums>, Sums)> {
    let mut norms = Sums::default();
    let mut errors: Vec<Sums> = runs.iter().map(|_| Sums::default()).collect();
    for chunk in 0..stop.chunks {
        observer.go_on()?;
        let lane = full.take_lane(rec, chunk, stop, |node| &stop.earlier[&node])?;
        let exact = stop.block.project(rec, stop.weights, lane.get(stop.input()))?;
        for (linear, exact) in exact.iter().enumerate() {
            norms.add(linear, stop.part(chunk), sum_squares(rec, exact)?);
        }
        let each = runs.iter_mut().zip(quantized).zip(&mut errors).filter(|((run, _), _)| run.is_active());
        for ((run, group), errors) in each {
            run.advance(rec, stop, chunk, (&exact, group), errors).await?;
        }
        let arrived = stop.run_to_next_cut(rec, exact, lane)?;
        full.keep(rec, chunk, arrived).await?;
    }
    Ok((errors, norms))
}

/// Waits until all chunks are where their streams keep them.
async fn wait_for_transfers(rec: &mut Recorder, streams: impl Iterator<Item = &mut Stream>) -> Result<()> {
    for stream in streams {
        stream.wait_for_transfers(rec).await?;
    }
    Ok(())
}

/// Returns `error`/`norm`, or 0 if `error` is 0. Errors: `Error::NotFinite` naming `place`.
fn relative(error: f64, norm: f64, place: &str) -> Result<f64> {
    let quotient = if error == 0.0 { 0.0 } else { error / norm };
    if quotient.is_finite() {
        return Ok(quotient);
    }
    Err(Error::NotFinite {
        place: place.to_string(),
        remedy: phrase![
            "the quantized model has broken down; use more bits, smaller groups or ",
            Setting::Alpha.set_to("off"),
        ],
    })
}
