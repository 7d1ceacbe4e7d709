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
//! `session` has the loop over blocks and stops. `run` holds one run, `stop` a stop, `stream` a stream, `planner` the use of
//! memory, `fold` the scales of AWQ, and `journal` the records of finished blocks.

pub mod fold;
mod journal;
mod planner;
mod run;
mod scratch;
mod session;
mod stop;
mod stream;
mod sums;
mod treatment;
mod work;

use futures::future::LocalBoxFuture;

use crate::checkpoint::{Checkpoint, CheckpointWriter};
use crate::device::Recorder;
use crate::engine::network::Network;
use crate::observer::Observer;
use crate::ops::grid::GridSpec;
use crate::quant::QuantizeOptions;
use crate::record::Report;
use crate::stored::{Replacements, StoredLinear};
use crate::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
pub use journal::DirectoryJournal;
pub use journal::{BlockRecord, Journal};
pub use planner::{largest_array, plan, roomy_plan};
use session::Session;
pub use treatment::Treatment;
pub use work::work;

/// A destination for quantized layers. It receives them in model order.
pub trait Output {
    /// The grid on which the layer `name` is to lie. `None` if any grid will do.
    fn grid(&self, name: &str) -> Option<GridSpec> {
        let _ = name;
        None
    }

    /// Receives the new values of a norm or a bias, before the layers of the same block. The stored type of the tensor
    /// represents the values exactly.
    fn put_tensor(&mut self, name: String, values: Vec<f32>) -> Result<()>;

    /// Receives one layer.
    fn put(&mut self, linear: StoredLinear) -> LocalBoxFuture<'_, Result<()>>;
}

impl Output for CheckpointWriter<'_> {
    fn grid(&self, name: &str) -> Option<GridSpec> {
        CheckpointWriter::grid(self, name)
    }

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
    for layer in 0..network.config().blocks.len() {
        session.quantize_block(rec, layer, observer).await?;
    }
    session.quantize_head(rec, observer).await?;
    Ok(session.finish(observer.seconds() - started, rec.device().peak_bytes()))
}
