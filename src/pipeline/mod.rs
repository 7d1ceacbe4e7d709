//! The block loop of algorithms.md §2: two streams of hidden states, one through original weights only, one through those
//! quantized so far. At each stop of a block: statistics, correction, rounding, then both streams go on to the next stop.
//!
//! What a stream keeps between stops follows from the description of the block (`family::Cut`), so each linear layer runs once
//! per stream and token. Several runs over the same text go through the blocks together and share the first of the two streams.

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
use crate::device::{Place, Recorder};
use crate::engine::block::Block;
use crate::engine::network::Network;
use crate::error::{Setting, phrase};
use crate::family::{Cut, LinearSpec};
use crate::observer::{Event, Group, Observer};
use crate::ops::reduce::sum_squares;
use crate::quant::QuantizeOptions;
use crate::record::{Phase, Report};
use crate::stored::{Replacements, StoredLinear};
use crate::tensor::Tensor;
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

/// Where quantized layers go, in model order.
pub trait Output {
    /// Takes new values of a norm or a bias, before the layers of its block; in its stored type they are exact.
    fn put_tensor(&mut self, name: String, values: Vec<f32>) -> Result<()>;

    /// Takes one layer.
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

/// Keeps the layers in memory, to evaluate them without a checkpoint.
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
    /// What to do.
    pub options: &'a QuantizeOptions,
    /// Where the layers go.
    pub output: &'a mut dyn Output,
    /// The blocks that are done already, and where those that will be are kept.
    pub journal: Option<&'a mut dyn Journal>,
}

impl<'a> Job<'a> {
    /// A run from the first block on, of which nothing is kept.
    pub fn new(options: &'a QuantizeOptions, output: &'a mut dyn Output) -> Self {
        Self { options, output, journal: None }
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
    let mut reports = quantize_together(rec, checkpoint, windows, vec![Job::new(options, output)], observer).await?;
    reports.swap_remove(0)
}

/// As many calls of [`quantize`] at once, block by block, with one full-precision stream for all of them: the same
/// results to the bit, for less time and more memory.
///
/// All jobs have the same `samples` and `seq_len`. In a report, time that served all is divided equally.
/// Errors: as of [`quantize`]; of a run that breaks down (`Error::NotFinite`) only its own result.
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
        session.block(rec, layer, observer).await?;
    }
    session.head(rec, observer).await?;
    Ok(session.finish(observer.seconds() - started, rec.device().peak_bytes()))
}

/// The full-precision stream, and the runs that it serves.
struct Session<'n, 'a> {
    network: &'n Network<'a>,
    /// S.
    full: Stream,
    /// The chunks from this one on are held out.
    held_out_from: usize,
    /// Whether streams keep less and compute more, as planned.
    remake: bool,
    runs: Vec<Run<'a>>,
    /// The weights of the next stop, if they are on their way to a GPU.
    next: Option<Vec<Tensor>>,
    /// Whether every block of every run has a record and nothing follows, so that no stream is needed.
    recorded: bool,
}

/// A block that is being quantized, with what all streams share in it.
struct OpenBlock {
    layer: usize,
    block: Block,
    cuts: Vec<Cut>,
    specs: Vec<LinearSpec>,
    /// Original weights of stops that chunks go through again later in the block.
    earlier: WeightsByNode,
}

impl OpenBlock {
    fn new(layer: usize, block: Block, remake: bool) -> Self {
        let (cuts, specs) = (block.line().cuts(remake), Vec::new());
        let mut open = Self { layer, block, cuts, specs, earlier: WeightsByNode::new() };
        open.specs = open.block.line().groups().flatten().map(|linear| linear.at(layer)).collect();
        open
    }

    /// How many stops there are.
    fn stops(&self) -> usize {
        self.cuts.len() - 1
    }

    fn group(&self, stop: usize) -> Group {
        let label = self.block.line().label(self.cuts[stop].node);
        Group { block: self.layer, index: stop, groups: self.stops(), label }
    }

    /// The linear layers of a stop.
    fn specs(&self, stop: usize) -> &[LinearSpec] {
        let mut groups = self.block.line().groups().map(<[_]>::len);
        let first: usize = groups.by_ref().take(stop).sum();
        &self.specs[first..first + groups.next().unwrap_or(0)]
    }

    /// Whether chunks go through the linear layers of a stop again at a later one.
    fn comes_again(&self, stop: usize) -> bool {
        let node = self.cuts[stop].node;
        self.cuts.iter().any(|cut| cut.remade.contains(&node))
    }
}

impl<'n, 'a> Session<'n, 'a> {
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
        let recorded = runs.iter().all(|run| run.recorded() >= blocks && !run.quantizes_head());
        Ok(Self { network, full, held_out_from, remake: plan.recompute, runs, next: None, recorded })
    }

    /// The records, for a session that took `seconds` and at most `peak` bytes on the device.
    fn finish(mut self, seconds: f64, peak: Option<u64>) -> Vec<Result<Report>> {
        self.runs.iter_mut().for_each(|run| run.report.peak_device_bytes = peak);
        let booked = self.runs.iter().map(Run::booked).sum::<f64>();
        let rest = (seconds - booked) / self.runs.len() as f64;
        self.runs.into_iter().map(|run| run.finish(rest)).collect()
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Run<'a>> {
        self.runs.iter_mut().filter(|run| run.goes_on())
    }

    async fn block(&mut self, rec: &mut Recorder, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        if self.running().next().is_none() {
            return Ok(());
        }
        for run in self.running() {
            run.begin_block(layer)?;
        }
        if !self.recorded {
            let since = observer.seconds();
            let block = self.network.block(rec, layer).await?;
            self.book_since(rec, Phase::Load, since, observer).await?;
            let mut open = OpenBlock::new(layer, block, self.remake);
            for stop in 0..open.stops() {
                self.group(rec, &mut open, stop, observer).await?;
            }
            let outputs = &open.block.line().outputs;
            self.full.leave_block(outputs);
            self.runs.iter_mut().for_each(|run| run.stream.leave_block(outputs));
        }
        self.close(rec, layer, observer).await
    }

    /// Quantizes the linear layers of a stop in every run, and takes all streams past them.
    async fn group(
        &mut self,
        rec: &mut Recorder,
        open: &mut OpenBlock,
        index: usize,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let since = observer.seconds();
        let node = open.cuts[index].node;
        let weights = match self.next.take() {
            Some(weights) => weights,
            None => self.network.weights(rec, open.layer, node).await?,
        };
        let next = self.next_stop(open, index);
        if let Some((layer, node)) = next {
            self.network.prefetch(layer, node);
        }
        self.book_since(rec, Phase::Load, since, observer).await?;
        let (network, group) = (self.network, open.group(index));
        let stop = Stop {
            checkpoint: network.checkpoint(),
            place: format!("block {}, {}", group.block, group.label),
            group: Some(group.clone()),
            layer: open.layer,
            block: &open.block,
            cut: &open.cuts[index],
            next: &open.cuts[index + 1],
            specs: open.specs(index),
            weights: &weights,
            earlier: &open.earlier,
            ropes: network.ropes(),
            positions: network.positions(),
            chunks: self.full.chunks(),
            held_out_from: self.held_out_from,
        };
        let mut quantized = Vec::new();
        for run in &mut self.runs {
            observer.go_on()?;
            let group = match run.goes_on() {
                true => run.quantize(rec, &stop, &self.full, observer).await,
                false => Ok(QuantizedGroup::default()),
            };
            quantized.push(run.absorb_failure(group)?);
        }
        stop.begin(Phase::Forward, observer);
        let since = observer.seconds();
        let (errors, norms) = advance(rec, &stop, (&mut self.full, &mut self.runs), &quantized, observer).await?;
        if let Some((layer, node)) = next.filter(|_| rec.is_gpu()) {
            // While the GPU is busy with the last of this group.
            self.next = Some(self.network.weights(rec, layer, node).await?);
        }
        let streams = self.runs.iter_mut().map(|run| &mut run.stream);
        wait_for_transfers(rec, [&mut self.full].into_iter().chain(streams)).await?;
        let norms = norms.read(rec, stop.specs.len()).await?;
        self.book_since(rec, Phase::Forward, since, observer).await?;
        let again = open.comes_again(index);
        for ((run, group), errors) in
            self.runs.iter_mut().zip(quantized).zip(errors).filter(|((run, _), _)| run.goes_on())
        {
            let finished = run.finish_group(rec, &stop, group, (errors, &norms), again).await;
            run.absorb_failure(finished)?;
        }
        if again {
            open.earlier.insert(node, weights);
        }
        observer.event(&Event::Group(group));
        Ok(())
    }

    /// The stop after number `index` of the block in hand: its block and node.
    fn next_stop(&self, open: &OpenBlock, index: usize) -> Option<(usize, usize)> {
        if index + 1 < open.stops() {
            return Some((open.layer, open.cuts[index + 1].node));
        }
        let next = open.layer + 1;
        Some((next, self.network.config().blocks.get(next)?.stops().next()?))
    }

    /// Quantizes the output matrix in every run that asks for it.
    async fn head(&mut self, rec: &mut Recorder, observer: &mut dyn Observer) -> Result<()> {
        if !self.running().any(|run| run.quantizes_head()) {
            return Ok(());
        }
        observer.event(&Event::Head);
        let network = self.network;
        let open = OpenBlock::new(network.config().blocks.len(), network.head_block(rec).await?, false);
        let spec = network.config().head_linear();
        let stop = Stop {
            checkpoint: network.checkpoint(),
            place: spec.name.clone(),
            group: None,
            layer: open.layer,
            block: &open.block,
            cut: &open.cuts[0],
            next: &open.cuts[1],
            specs: &[spec],
            weights: &[network.output_matrix(rec).await?],
            earlier: &open.earlier,
            ropes: network.ropes(),
            positions: network.positions(),
            chunks: self.full.chunks(),
            held_out_from: self.held_out_from,
        };
        for run in self.runs.iter_mut().filter(|run| run.goes_on()) {
            observer.go_on()?;
            let done = run.quantize_head(rec, &stop, &self.full, observer).await;
            run.absorb_failure(done)?;
        }
        Ok(())
    }

    /// Measures how far every run is from S after block `layer`, and hands the block over.
    async fn close(&mut self, rec: &mut Recorder, layer: usize, observer: &mut dyn Observer) -> Result<()> {
        let mut norm = Sums::default();
        for chunk in 0..self.full.chunks() {
            let hidden = self.full.hidden(rec, chunk)?;
            norm.add(0, 0, sum_squares(rec, &hidden)?);
        }
        let all = norm.read(rec, 1).await?[0][0];
        let mut errors = Vec::new();
        for run in self.runs.iter_mut().filter(|run| run.goes_on()) {
            let measured = run.measure(rec, layer, &self.full, all).await;
            errors.extend(run.absorb_failure(measured)?);
        }
        observer.event(&Event::Write { block: layer });
        let since = observer.seconds();
        for run in self.runs.iter_mut().filter(|run| run.goes_on()) {
            let handed = run.hand_over().await;
            run.absorb_failure(handed)?;
        }
        self.book_since(rec, Phase::Write, since, observer).await?;
        observer.event(&Event::Block { block: layer, errors });
        Ok(())
    }

    /// Waits for the device and books the time since `since` under `phase`, an equal share for every run.
    async fn book_since(
        &mut self,
        rec: &mut Recorder,
        phase: Phase,
        since: f64,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        rec.finish().await?;
        let seconds = observer.seconds() - since;
        let runs = self.running().count() as f64;
        self.running().for_each(|run| run.book(phase, seconds / runs));
        Ok(())
    }
}

/// Takes all streams past the linear layers of `stop`, each through its own weights. Returns ‖WX − QX̂‖² of the quantized layers
/// of each run, and ‖WX‖² of every layer.
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
        let lane = full.lane(rec, chunk, stop, |node| &stop.earlier[&node])?;
        let exact = stop.block.project(rec, stop.weights, lane.get(stop.input()))?;
        for (linear, exact) in exact.iter().enumerate() {
            norms.add(linear, stop.part(chunk), sum_squares(rec, exact)?);
        }
        let each = runs.iter_mut().zip(quantized).zip(&mut errors).filter(|((run, _), _)| run.goes_on());
        for ((run, group), errors) in each {
            run.advance(rec, stop, chunk, (&exact, group), errors).await?;
        }
        let arrived = stop.pass(rec, exact, lane)?;
        full.keep(rec, chunk, arrived).await?;
    }
    Ok((errors, norms))
}

/// Waits until all that was put back is where it is kept.
async fn wait_for_transfers(rec: &mut Recorder, streams: impl Iterator<Item = &mut Stream>) -> Result<()> {
    for stream in streams {
        stream.wait_for_transfers(rec).await?;
    }
    Ok(())
}

/// `error`/`norm`, 0 if nothing differs. Errors: `Error::NotFinite` naming `place`.
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
