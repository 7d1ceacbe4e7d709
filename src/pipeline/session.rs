//! The loop over the stops of all blocks: the full-precision stream, and the runs that share it.
//!
//! `pipeline::quantize_together` starts a session, takes it through the blocks and the head, and collects the records.

use std::collections::BTreeMap;

use super::planner::{chunks_before_blocks, plan};
use super::run::{QuantizedGroup, Run};
use super::stop::{BlockStops, Shared, Stop};
use super::stream::Stream;
use super::sums::Sums;
use super::{Job, Treatment};
use crate::Result;
use crate::device::{Place, Recorder, Tensor};
use crate::engine::network::Network;
use crate::observer::{Event, Observer};
use crate::ops::reduce::sum_squares;
use crate::quant::QuantizeOptions;
use crate::record::{Phase, Report};

/// The full-precision stream and the runs that share it, on their way through the blocks.
pub(super) struct Session<'n, 'a> {
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

impl<'n, 'a> Session<'n, 'a> {
    /// Plans the memory, checks the head, and embeds all windows into the streams. Chunks of fitting tokens come before
    /// chunks of held-out tokens.
    pub async fn start(
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
        let blocks = config.blocks.len();
        let mut session = Self {
            network,
            full: Stream::new(rec, plan.streams)?,
            held_out_from: fitting.chunks(per_chunk).len(),
            remake: plan.recompute,
            next_weights: None,
            all_recorded: runs.iter().all(|run| run.recorded() >= blocks && !run.quantizes_head()),
            runs,
        };
        let together = match plan.streams {
            Place::Device => chunks.len(),
            Place::Host | Place::File => chunks_before_blocks(config, per_chunk * options.seq_len),
        };
        for chunks in chunks.chunks(together) {
            session.embed(rec, chunks).await?;
        }
        session.wait_for_transfers(rec).await?;
        Ok(session)
    }

    /// Adds chunks of windows to all streams: their embeddings.
    async fn embed(&mut self, rec: &mut Recorder, chunks: &[&[Vec<u32>]]) -> Result<()> {
        for hidden in self.network.embed(rec, chunks).await? {
            for run in &mut self.runs {
                let copy = rec.duplicate(&hidden)?;
                run.stream.push(rec, copy).await?;
            }
            self.full.push(rec, hidden).await?;
        }
        Ok(())
    }

    /// Waits until every array of every stream is where it is kept.
    async fn wait_for_transfers(&mut self, rec: &mut Recorder) -> Result<()> {
        self.full.wait_for_transfers(rec).await?;
        for run in &mut self.runs {
            run.stream.wait_for_transfers(rec).await?;
        }
        Ok(())
    }

    /// Completes the reports. `seconds`: the duration of the session, whose unbooked part is divided equally among the
    /// runs; `peak`: the peak size of all arrays on a GPU, in bytes.
    pub fn finish(mut self, seconds: f64, peak: Option<u64>) -> Vec<Result<Report>> {
        self.runs.iter_mut().for_each(|run| run.report.peak_device_bytes = peak);
        let booked = self.runs.iter().map(Run::booked).sum::<f64>();
        let rest = (seconds - booked) / self.runs.len() as f64;
        self.runs.into_iter().map(|run| run.finish(rest)).collect()
    }

    /// What all stops share.
    fn shared(&self) -> Shared<'n> {
        Shared { network: self.network, chunks: self.full.chunks(), held_out_from: self.held_out_from }
    }

    /// The runs that have not failed.
    fn active_runs(&mut self) -> impl Iterator<Item = &mut Run<'a>> {
        self.runs.iter_mut().filter(|run| run.is_active())
    }

    /// Takes all runs through block `layer`: all of its stops, then the measurement and the output. Recorded runs take
    /// their results from the journal.
    pub async fn quantize_block(
        &mut self,
        rec: &mut Recorder,
        layer: usize,
        observer: &mut dyn Observer,
    ) -> Result<()> {
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
        let stop = stops.stop(index, &weights, self.shared());
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
        self.wait_for_transfers(rec).await?;
        let norms = norms.read(rec, stop.specs.len()).await?;
        self.book_since(rec, Phase::Forward, since, observer).await?;
        let again = stops.is_run_again(index);
        for ((run, group), errors) in
            self.runs.iter_mut().zip(quantized).zip(errors).filter(|((run, _), _)| run.is_active())
        {
            let finished = run.finish_group(rec, &stop, group, (errors, &norms), again).await;
            run.absorb_failure(finished)?;
        }
        if let Some(group) = stop.group {
            observer.event(&Event::Group(group));
        }
        if again {
            stops.earlier.insert(node, weights);
        }
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
    pub async fn quantize_head(&mut self, rec: &mut Recorder, observer: &mut dyn Observer) -> Result<()> {
        if !self.active_runs().any(|run| run.quantizes_head()) {
            return Ok(());
        }
        observer.event(&Event::Head);
        let network = self.network;
        let stops = BlockStops::new(network.config().blocks.len(), network.head_block(rec).await?, false);
        let weights = [network.output_matrix(rec).await?];
        let stop = stops.stop(0, &weights, self.shared());
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
