//! One model, quantized and written as a checkpoint.

use crate::Result;
use crate::calibration::Calibration;
use crate::checkpoint::format::Container;
use crate::checkpoint::{Checkpoint, CheckpointWriter, DEFAULT_SHARD_LIMIT, Sink, TensorGroup, WritePlan};
use crate::device::Recorder;
use crate::observer::Observer;
use crate::pipeline::{Job, Journal, Treatment, quantize_together};
use crate::quant::QuantizeOptions;
use crate::record::Report;
use crate::report::Sizes;

/// The calibration windows that `options` ask for, the held-out ones last.
///
/// Errors: those of [`Calibration::draw`].
pub fn calibration_windows(tokens: &Calibration, options: &QuantizeOptions) -> Result<Vec<Vec<u32>>> {
    tokens.draw(options.samples, options.held_out(), options.seq_len, options.sampling, options.seed)
}

/// A model, how it is quantized, and the files that come of it.
pub struct CheckpointRun<'a> {
    model: &'a Checkpoint,
    options: &'a QuantizeOptions,
    plan: WritePlan,
}

impl<'a> CheckpointRun<'a> {
    /// Plans the files. Nothing is read or written yet.
    ///
    /// Errors: `Error::Input` if `model` is quantized already, if there is no format of the name in `options`, or if it cannot
    /// store a layer.
    pub async fn new(model: &'a Checkpoint, options: &'a QuantizeOptions) -> Result<Self> {
        let treatment = Treatment::new(options, model.config());
        let format = treatment.format()?;
        let (settings, layers) = (treatment.settings(), treatment.layers());
        let plan = WritePlan::new(model, format, settings, &layers, DEFAULT_SHARD_LIMIT).await?;
        Ok(Self { model, options, plan })
    }

    /// The sizes of both checkpoints.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            original_bytes: self.model.bytes(),
            quantized_bytes: self.plan.bytes(),
            bits_per_weight: Some(self.plan.bits_per_weight()),
        }
    }

    /// Whether the result is one file, and no directory.
    pub fn is_one_file(&self) -> bool {
        matches!(self.plan.container(), Container::File { .. })
    }

    /// What some client will not do with the files, and which layers get less than the whole method. Each note is a
    /// sentence without a full stop.
    pub fn notes(&self) -> Vec<String> {
        let treatment = Treatment::new(self.options, self.model.config());
        self.plan.notes().iter().cloned().chain(treatment.notes()).collect()
    }

    /// The tensors that the model does not use and that are copied.
    pub fn copied(&self) -> &[TensorGroup] {
        self.plan.copied()
    }

    /// The tensors that the new checkpoint leaves out because they have no meaning in it.
    pub fn left_out(&self) -> &[TensorGroup] {
        self.plan.left_out()
    }

    /// A writer of the planned files to `sink`.
    ///
    /// Errors: `Error::Input` if there is no room for them.
    pub fn writer(&self, sink: Box<dyn Sink>) -> Result<CheckpointWriter<'a>> {
        CheckpointWriter::new(self.model, self.plan.clone(), sink)
    }

    /// Quantizes the model, calibrated on `windows`, and completes the files. Blocks that `journal` has are not quantized again.
    ///
    /// Errors: those of [`quantize_together`] and of `writer`.
    pub async fn quantize(
        &self,
        rec: &mut Recorder,
        windows: &[Vec<u32>],
        mut writer: CheckpointWriter<'_>,
        journal: Option<&mut dyn Journal>,
        observer: &mut dyn Observer,
    ) -> Result<Report> {
        // The cast shortens the lifetime of the trait object to that of the job.
        let journal = journal.map(|journal| journal as &mut dyn Journal);
        let job = Job { options: self.options, output: &mut writer, journal };
        let report = quantize_together(rec, self.model, windows, vec![job], observer).await?.swap_remove(0)?;
        writer.finish().await?;
        Ok(report)
    }
}
