//! The block loop of algorithms.md §2: two streams of hidden states, one through original weights only, one through
//! what has been quantized so far; group by group, statistics, correction, rounding, and both streams step on.
//!
//! Between groups a stream is two tensors per chunk (`Lane`), so each linear runs once per stream and token. Several runs
//! over the same text go through the blocks together and share the first of the two streams.

pub mod fold;
mod journal;

mod plan;
mod run;
mod stream;
mod sums;
mod treatment;
mod work;

use std::collections::BTreeMap;

use futures::future::LocalBoxFuture;

use crate::checkpoint::{Checkpoint, CheckpointWriter};
use crate::device::{Place, Recorder};
use crate::engine::block::{Block, Stage, widest_activation};
use crate::engine::network::Network;
use crate::family::ModelConfig;
use crate::observer::{Event, Observer};
use crate::ops::gram;
use crate::ops::reduce::sum_squares;
use crate::quant::QuantizeOptions;
use crate::record::Report;
use crate::record::{Phase, Plan};
use crate::stored::Replacements;
use crate::stored::StoredLinear;
use crate::tensor::Tensor;
use crate::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use journal::DirectoryJournal;
pub use journal::{BlockRecord, Journal};

use run::{Group, Open, Run, Step};
use stream::{Origin, Stream};
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
    let mut session = Session::start(rec, network, windows, jobs, observer).await?;
    for index in 0..session.network.config().num_hidden_layers {
        session.block(rec, index, observer).await?;
    }
    session.head(rec, observer).await?;
    Ok(session.finish(observer.seconds() - started, rec.device().peak_bytes()))
}

/// The full-precision stream, and the runs that it serves.
struct Session<'a> {
    network: Network<'a>,
    /// S.
    full: Stream,
    /// The chunks from this one on are held out.
    held_out_from: usize,
    runs: Vec<Run<'a>>,
    /// The next block and its weights, if they are on their way to a GPU.
    next: Option<(Block, Vec<Tensor>)>,
    /// Whether every block of every run has a record and nothing follows, so that no stream is needed.
    recorded: bool,
}

impl<'a> Session<'a> {
    async fn start(
        rec: &mut Recorder,
        network: Network<'a>,
        windows: &[Vec<u32>],
        jobs: Vec<Job<'a>>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let config = network.config();
        let options = jobs[0].options;
        let runs: Vec<&QuantizeOptions> = jobs.iter().map(|job| job.options).collect();
        let plan = Plan::new(config, &runs, rec)?;
        rec.keep_to(plan.device_bytes, plan.spare_bytes);
        let per_chunk = plan.sequences_per_chunk;
        let (fitting, held_out) = windows.split_at(windows.len() - options.held_out());
        let chunks: Vec<&[Vec<u32>]> = fitting.chunks(per_chunk).chain(held_out.chunks(per_chunk)).collect();
        let tokens = windows.len() * options.seq_len;
        let held_out_tokens = held_out.len() * options.seq_len;
        observer.event(&Event::Planned {
            runs: jobs.len(),
            blocks: config.num_hidden_layers,
            tokens,
            held_out: held_out_tokens,
            group_size: Treatment::new(options, config).group_size(),
            plan,
        });
        network.check_head(rec).await?;
        let chunk_elements = per_chunk * options.seq_len * plan.kept_columns(config);
        let stream = |rec: &Recorder| Stream::new(rec, plan.streams, chunk_elements, plan.recompute);
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
            runs.push(Run::new(job, stream(rec)?, report));
        }
        let mut full = stream(rec)?;
        let together = match plan.streams {
            Place::Device => chunks.len(),
            // As many as take the place of a block, which is not there yet.
            Place::Host | Place::File => Plan::chunks_like_a_block(config, per_chunk * options.seq_len),
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
        arrive(rec, [&mut full].into_iter().chain(runs.iter_mut().map(|run| &mut run.stream))).await?;
        let held_out_from = fitting.chunks(per_chunk).len();
        let blocks = config.num_hidden_layers;
        let recorded = runs.iter().all(|run| run.recorded() >= blocks && !run.quantizes_head());
        Ok(Self { network, full, held_out_from, runs, next: None, recorded })
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

    async fn block(&mut self, rec: &mut Recorder, index: usize, observer: &mut dyn Observer) -> Result<()> {
        if self.running().next().is_none() {
            return Ok(());
        }
        for run in self.running() {
            run.recall(index)?;
        }
        if self.recorded {
            return self.close(rec, index, observer).await;
        }
        let since = observer.seconds();
        let (block, weights) = match self.next.take() {
            Some(next) => next,
            None => self.network.block(rec, index).await?,
        };
        self.network.prefetch(index + 1);
        let specs = self.network.config().block_linears(index);
        self.spent(rec, Phase::Load, since, observer).await?;
        let full = std::mem::take(&mut self.full);
        let held_out_from = self.held_out_from;
        let checkpoint = self.network.checkpoint();
        let mut open = Open { index, checkpoint, block: &block, specs: &specs, weights: &weights, full, held_out_from };
        for stage in Stage::ALL {
            self.stage(rec, &mut open, stage, observer).await?;
            observer.event(&Event::Group { block: index, stage });
        }
        self.full = open.full;
        self.close(rec, index, observer).await
    }

    /// Quantizes the linears of `stage` in every run, and takes all streams past them.
    async fn stage(
        &mut self,
        rec: &mut Recorder,
        open: &mut Open<'_>,
        stage: Stage,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let mut steps = Vec::new();
        for run in &mut self.runs {
            observer.go_on()?;
            let step = if run.goes_on() { run.quantize(rec, open, stage, observer).await } else { Ok(Step::default()) };
            steps.push(run.survive(step)?);
        }
        observer.event(&Event::Phase { block: open.index, stage, phase: Phase::Forward });
        let since = observer.seconds();
        let norms = self.advance(rec, open, stage, &mut steps, observer).await?;
        self.spent(rec, Phase::Forward, since, observer).await?;
        for (run, step) in self.runs.iter_mut().zip(steps).filter(|(run, _)| run.goes_on()) {
            let settled = run.settle(rec, open, stage, step, &norms).await;
            run.survive(settled)?;
        }
        Ok(())
    }

    /// All streams past the linears of `stage`, each through its own weights.
    async fn advance(
        &mut self,
        rec: &mut Recorder,
        open: &mut Open<'_>,
        stage: Stage,
        steps: &mut [Step],
        observer: &dyn Observer,
    ) -> Result<Vec<[f64; 2]>> {
        let originals = &open.weights[stage.linears()];
        let origin = open.origin(stage);
        let mut norms = Sums::default();
        for chunk in 0..open.full.chunks() {
            observer.go_on()?;
            let mut lane = open.full.take(rec, chunk, stage, origin)?;
            let exact = open.block.project(rec, originals, &lane.input)?;
            for (linear, exact) in exact.iter().enumerate() {
                norms.add(linear, open.part(chunk), sum_squares(rec, exact)?);
            }
            for (run, step) in self.runs.iter_mut().zip(&mut *steps).filter(|(run, _)| run.goes_on()) {
                let mut context = self.network.context();
                run.advance(rec, open, (stage, chunk), &exact, step, &mut context).await?;
            }
            open.block.fold(rec, stage, exact, &mut self.network.context(), &mut lane)?;
            open.full.put_back(rec, chunk, stage, lane).await?;
        }
        if stage == Stage::Down && rec.is_gpu() && open.index + 1 < self.network.config().num_hidden_layers {
            // While the GPU is busy with the last of this block.
            self.next = Some(self.network.block(rec, open.index + 1).await?);
        }
        let runs = self.runs.iter_mut().map(|run| &mut run.stream);
        arrive(rec, [&mut open.full].into_iter().chain(runs)).await?;
        norms.read(rec, originals.len()).await
    }

    /// Quantizes the output matrix in every run that asks for it.
    async fn head(&mut self, rec: &mut Recorder, observer: &mut dyn Observer) -> Result<()> {
        if !self.running().any(|run| run.quantizes_head()) {
            return Ok(());
        }
        observer.event(&Event::Head);
        let norm = self.network.final_norm(rec).await?;
        let weight = self.network.output_matrix(rec).await?;
        let (place, origin) = (self.network.config().head_linear().name, Origin::Head(&norm));
        let group = Group { place, at: None, full: &self.full, origin, held_out_from: self.held_out_from };
        for run in self.runs.iter_mut().filter(|run| run.goes_on()) {
            observer.go_on()?;
            let done = run.head(rec, &group, &weight, observer).await;
            run.survive(done)?;
        }
        Ok(())
    }

    /// How far every run is from S after block `index`; hands the block over.
    async fn close(&mut self, rec: &mut Recorder, index: usize, observer: &mut dyn Observer) -> Result<()> {
        let mut norm = Sums::default();
        for chunk in 0..self.full.chunks() {
            let hidden = self.full.hidden(rec, chunk)?;
            norm.add(0, 0, sum_squares(rec, &hidden)?);
        }
        let all = norm.read(rec, 1).await?[0][0];
        let mut errors = Vec::new();
        for run in self.runs.iter_mut().filter(|run| run.goes_on()) {
            let measured = run.measure(rec, index, &self.full, all).await;
            errors.extend(run.survive(measured)?);
        }
        observer.event(&Event::Phase { block: index, stage: Stage::Down, phase: Phase::Write });
        let since = observer.seconds();
        for run in self.runs.iter_mut().filter(|run| run.goes_on()) {
            let handed = run.hand_over().await;
            run.survive(handed)?;
        }
        self.spent(rec, Phase::Write, since, observer).await?;
        observer.event(&Event::Block { block: index, errors });
        Ok(())
    }

    /// Waits for the device and books the time since `since` under `phase`, an equal share for every run.
    async fn spent(&mut self, rec: &mut Recorder, phase: Phase, since: f64, observer: &mut dyn Observer) -> Result<()> {
        rec.finish().await?;
        let seconds = observer.seconds() - since;
        let runs = self.running().count() as f64;
        self.running().for_each(|run| run.book(phase, seconds / runs));
        Ok(())
    }
}

/// Waits until all that was put back is where it is kept.
async fn arrive(rec: &mut Recorder, streams: impl Iterator<Item = &mut Stream>) -> Result<()> {
    for stream in streams {
        stream.arrive(rec).await?;
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
        remedy: "the quantized model has broken down; use more bits, smaller groups or --alpha off".to_string(),
    })
}

/// Takes a tensor out of a place that is not needed again.
fn take(rec: &mut Recorder, place: &mut Tensor) -> Result<Tensor> {
    Ok(std::mem::replace(place, rec.empty(&[0])?))
}

/// The largest array of a run, in bytes: what the device must be able to bind.
///
/// A weight, H of the widest group, or one sequence's widest activation; longer things are cut into pieces. AWQ and QuIP unpack H
/// and need twice as much for it.
pub fn largest_array(config: &ModelConfig, seq_len: usize) -> u64 {
    let weights = config.block_linears(0).into_iter().map(|linear| linear.rows as u64 * linear.columns as u64);
    let hessians = config.block_linears(0).into_iter().map(|linear| gram::packed_len(linear.columns) as u64);
    let activation = seq_len as u64 * widest_activation(config) as u64;
    weights.chain(hessians).chain([activation]).max().unwrap_or(0) * 4
}
