//! Every combination of some options, quantized and evaluated. Finished cells are kept, and a later sweep does not run them again.
//!
//! [`Grid`] has the cells, a [`Store`] their results, and [`Sweep`] runs those without one.

mod grid;
mod store;

pub use grid::{Axes, Cell, Grid, Variant};
#[cfg(not(target_arch = "wasm32"))]
pub use store::DirectoryStore;
pub use store::{Finished, ForeignResult, Original, Store};

use super::checkpoint_run::calibration_windows;
use super::evaluation::{Evaluated, EvaluationText};
use super::fingerprint::{Fingerprint, texts_hash};
use super::retry::with_less_memory;
use crate::device::Recorder;
use crate::eval::tasks::{Task, TaskResult, answer};
use crate::observer::Observer;
use crate::pipeline::{Job, quantize_together};
use crate::record::Report;
use crate::report::{Evaluation, Run};
use crate::stored::Replacements;
use crate::{Calibration, Checkpoint, Error, Result};

/// The name under which the evaluation of the original model is kept.
const ORIGINAL: &str = "original";

/// What happens in a sweep beside the events of its runs.
#[derive(Debug)]
pub enum SweepEvent<'a> {
    /// The evaluation of the original model begins.
    Original,
    /// The quantization of a cell begins, perhaps together with others.
    Cell(&'a Cell),
    /// A quantized model was measured on a text.
    Perplexity(&'a Cell, &'a Evaluation),
    /// A quantized model was measured on a task.
    Accuracy(&'a Cell, &'a TaskResult),
}

/// An observer of a sweep.
pub trait SweepObserver: Observer {
    /// Takes notice of an event.
    fn sweep_event(&mut self, event: &SweepEvent<'_>);

    /// The sentence about a failed cell that goes into its result.
    fn sentence(&self, error: &Error) -> String;
}

/// What all cells of a sweep have in common.
pub struct SweepSetup<'a> {
    /// The original model.
    pub model: &'a Checkpoint,
    /// The tokens to draw calibration windows from.
    pub calibration: &'a Calibration,
    /// The texts to evaluate on.
    pub texts: Vec<EvaluationText>,
    /// The tasks to evaluate on.
    pub tasks: Vec<Task>,
    /// What to do with results of other sweeps in the same place.
    pub foreign: ForeignResult,
}

/// A cell and its result, if it has one.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The cell.
    pub cell: Cell,
    /// `None` while it is to be run.
    pub finished: Option<Finished>,
}

/// A cell with its result.
#[derive(Debug, Clone)]
pub struct Row {
    /// The cell.
    pub cell: Cell,
    /// Its result.
    pub finished: Finished,
}

/// A sweep over one model, on the device of a recorder.
pub struct Sweep<'a> {
    rec: Recorder,
    setup: SweepSetup<'a>,
    store: &'a mut dyn Store,
    /// The fingerprint of the original model's evaluation.
    original: Fingerprint,
}

impl<'a> Sweep<'a> {
    /// A sweep on the device and within the memory of `rec`, whose results `store` keeps.
    ///
    /// Errors: those of reading the model.
    pub async fn new(rec: Recorder, setup: SweepSetup<'a>, store: &'a mut dyn Store) -> Result<Self> {
        let texts = setup.texts.iter().map(|text| (text.name.as_str(), text.windows.as_slice()));
        let evaluation = Some(texts_hash(texts, &setup.tasks));
        let original = Fingerprint { evaluation, ..Fingerprint::new(setup.model, rec.device()).await? };
        Ok(Self { rec, setup, store, original })
    }

    /// Looks up which cells have a result.
    ///
    /// Errors: `Error::Input` if a result was made with something else and foreign results are refused.
    pub fn entries(&self, cells: Vec<Cell>) -> Result<Vec<Entry>> {
        let entry = |cell: Cell| {
            let fingerprint = self.fingerprint(&cell)?;
            let finished = store::load(self.store, &stored_name(&cell), &fingerprint, self.setup.foreign)?;
            Ok(Entry { cell, finished })
        };
        cells.into_iter().map(entry).collect()
    }

    /// Runs the cells that have no result yet, `together` at a time where they share their calibration windows.
    ///
    /// Returns the evaluation of the original model, and all cells in the given order. A quantization that breaks down is a result.
    /// Errors: `Error::Cancelled`, and what the device or the store report; results until then are kept.
    pub async fn finish(
        &mut self,
        mut entries: Vec<Entry>,
        together: usize,
        observer: &mut dyn SweepObserver,
    ) -> Result<(Original, Vec<Row>)> {
        self.store.prepare()?;
        let original = self.original(observer).await?;
        while let Some(seed) =
            entries.iter().find(|entry| entry.finished.is_none()).map(|entry| entry.cell.options.seed)
        {
            let waiting = |entry: &&mut Entry| entry.finished.is_none() && entry.cell.options.seed == seed;
            let mut batch: Vec<&mut Entry> = entries.iter_mut().filter(waiting).take(together).collect();
            let cells: Vec<&Cell> = batch.iter().map(|entry| &entry.cell).collect();
            let results = self.quantize(&cells, observer).await?;
            for (Entry { cell, finished }, (report, layers)) in batch.iter_mut().map(|entry| &mut **entry).zip(results)
            {
                let quantized = QuantizedCell { cell, layers: &layers, original: &original };
                let result = self.evaluate(quantized, report, observer).await?;
                let fingerprint = self.fingerprint(cell)?;
                store::save(self.store, &stored_name(cell), &fingerprint, &result)?;
                *finished = Some(result);
            }
        }
        let row = |Entry { cell, finished }| Some(Row { cell, finished: finished? });
        Ok((original, entries.into_iter().filter_map(row).collect()))
    }

    fn fingerprint(&self, cell: &Cell) -> Result<Fingerprint> {
        Ok(self.original.quantized(&cell.options, &calibration_windows(self.setup.calibration, &cell.options)?))
    }

    /// The original model on every text and task, from the store or measured now.
    async fn original(&mut self, observer: &mut dyn SweepObserver) -> Result<Original> {
        if let Some(original) = store::load(self.store, ORIGINAL, &self.original, self.setup.foreign)? {
            return Ok(original);
        }
        observer.sweep_event(&SweepEvent::Original);
        let mut original = Original { texts: Vec::new(), tasks: Vec::new() };
        for text in 0..self.setup.texts.len() {
            original.texts.push(self.perplexity(text, None, observer).await?);
        }
        for task in 0..self.setup.tasks.len() {
            original.tasks.push(self.accuracy(task, None, observer).await?);
        }
        store::save(self.store, ORIGINAL, &self.original, &original)?;
        Ok(original)
    }

    async fn perplexity(
        &mut self,
        text: usize,
        layers: Option<&Replacements>,
        observer: &mut dyn Observer,
    ) -> Result<Evaluation> {
        let text = &self.setup.texts[text];
        let evaluated = Evaluated { layers, ..Evaluated::new(self.setup.model) };
        Ok(Evaluation::new(&text.name, &text.evaluate(&mut self.rec, evaluated, observer).await?))
    }

    async fn accuracy(
        &mut self,
        task: usize,
        layers: Option<&Replacements>,
        observer: &mut dyn Observer,
    ) -> Result<TaskResult> {
        let answered = answer(&mut self.rec, self.setup.model, layers, &self.setup.tasks[task], observer).await?;
        Ok(TaskResult { log_likelihoods: Vec::new(), ..answered })
    }

    /// Quantizes cells with the same calibration windows together.
    async fn quantize(
        &self,
        cells: &[&Cell],
        observer: &mut dyn SweepObserver,
    ) -> Result<Vec<(Result<Report>, Replacements)>> {
        cells.iter().for_each(|cell| observer.sweep_event(&SweepEvent::Cell(cell)));
        let options = &cells[0].options;
        let windows = calibration_windows(self.setup.calibration, options)?;
        let (device, memory) = (self.rec.device(), self.rec.memory().clone());
        let attempt = async |rec: &mut Recorder, observer: &mut dyn Observer| {
            let mut layers: Vec<Replacements> = cells.iter().map(|_| Replacements::new()).collect();
            let jobs = cells.iter().zip(&mut layers).map(|(cell, output)| Job::new(&cell.options, output)).collect();
            let reports = quantize_together(rec, self.setup.model, &windows, jobs, observer).await?;
            Ok(reports.into_iter().zip(layers).collect())
        };
        with_less_memory(device, memory, options.seq_len, observer, attempt).await
    }

    /// Evaluates a quantized cell. Errors: those that are no result of it, such as a device out of memory.
    async fn evaluate(
        &mut self,
        quantized: QuantizedCell<'_>,
        report: Result<Report>,
        observer: &mut dyn SweepObserver,
    ) -> Result<Finished> {
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                return Ok(Finished { run: None, tasks: Vec::new(), failure: Some(observer.sentence(&error)) });
            }
        };
        let QuantizedCell { cell, .. } = quantized;
        let mut run = Run { sizes: Some(cell.sizes), ..Run::new(&cell.label, self.setup.model.name(), report) };
        let mut tasks = Vec::new();
        let failure = match self.measure(quantized, &mut run, &mut tasks, observer).await {
            Ok(()) => None,
            Err(error @ Error::NotFinite { .. }) => Some(observer.sentence(&error)),
            Err(error) => return Err(error),
        };
        Ok(Finished { run: Some(run), tasks, failure })
    }

    /// Adds all perplexities to `run` and all accuracies to `tasks`, until one is no number.
    async fn measure(
        &mut self,
        QuantizedCell { cell, layers, original }: QuantizedCell<'_>,
        run: &mut Run,
        tasks: &mut Vec<TaskResult>,
        observer: &mut dyn SweepObserver,
    ) -> Result<()> {
        for (text, original) in original.texts.iter().enumerate() {
            let original_perplexity = Some(original.perplexity);
            let measured = self.perplexity(text, Some(layers), observer).await?;
            let evaluation = Evaluation { original_perplexity, ..measured };
            observer.sweep_event(&SweepEvent::Perplexity(cell, &evaluation));
            run.evaluations.push(evaluation);
        }
        for task in 0..original.tasks.len() {
            let result = self.accuracy(task, Some(layers), observer).await?;
            observer.sweep_event(&SweepEvent::Accuracy(cell, &result));
            tasks.push(result);
        }
        Ok(())
    }
}

/// A cell, its quantized layers, and the original model's results.
#[derive(Clone, Copy)]
struct QuantizedCell<'a> {
    cell: &'a Cell,
    layers: &'a Replacements,
    original: &'a Original,
}

/// The name under which the result of a cell is kept.
fn stored_name(cell: &Cell) -> String {
    format!("cells/{}", cell.name)
}
