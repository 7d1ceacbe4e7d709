//! `aquatint sweep`: every combination of some options, quantized and evaluated, in one table. What is finished stays
//! finished, whatever ends the program.

mod grid;
mod store;
mod table;

use aquatint::checkpoint::read_text_file;
use aquatint::device::{Device, Recorder};
use aquatint::engine::network::Network;
use aquatint::eval::evaluate;
use aquatint::eval::tasks::{Task, TaskResult, answer};
use aquatint::pipeline::{Job, quantize_together};
use aquatint::record::Report;
use aquatint::report::{Document, Evaluation, Run, html};
use aquatint::stored::Replacements;
use aquatint::{Calibration, Checkpoint, Error, Result, bundled};

use super::args::SweepArgs;
use super::console::Console;
use super::eval::evaluation_windows;
use super::fingerprint::{Fingerprint, texts_hash};
use super::memory::attempt;
use super::names::OptionNames;
use super::quantize::{calibration_tokens, draw};
use super::{check_writable, open_device, open_model, write_csv, write_json, write_whole};
use grid::{Cell, Grid};
use store::{Finished, Original, Store};
use table::Row;

/// Runs what is not finished, and prints and writes all results.
pub fn run(args: SweepArgs) -> Result<()> {
    args.report.as_deref().map_or(Ok(()), |path| check_writable("--report", path))?;
    let model = open_model(args.model.as_deref())?;
    let Grid { cells, skipped } = Grid::new(&args, &model)?;
    skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
    if args.together == 0 {
        return Err(Error::input("--together", "0", "at least 1", "use 4 or leave it out"));
    }
    let calibration = calibration_tokens(&model, &args.calibration)?;
    let measures = Measures {
        texts: texts(&args, &model, cells[0].options.seq_len)?,
        tasks: args.tasks.iter().map(|path| Task::parse(&read_text_file(path)?)).collect::<Result<_>>()?,
    };
    let device = open_device(&args.device)?;
    let mut sweep = Sweep::new(&model, &device, &calibration, measures, Store::new(&args.out, args.force))?;
    sweep.rec.set_memory(args.memory.resolve(&device, Some(&args.out))?);
    let mut rows = Vec::new();
    for cell in cells {
        let fingerprint = sweep.fingerprint(Some(&cell))?;
        rows.push((sweep.store.load(&sweep.store.cell(&cell.name), &fingerprint)?, cell));
    }
    let kept = rows.iter().filter(|(finished, _)| finished.is_some()).count();
    say!("{} cells, {kept} of them finished in {}", rows.len(), args.out.display());
    if args.dry_run {
        rows.iter().filter(|(finished, _)| finished.is_none()).for_each(|(_, cell)| say!("{}", cell.label));
        return Ok(());
    }
    sweep.store.create()?;
    let finished = sweep.finish(&mut rows, args.together);
    if matches!(finished, Err(Error::Cancelled)) {
        eprintln!("finished cells are kept in {}; the same command goes on from there", args.out.display());
    }
    let original = finished?;
    let rows: Vec<Row> = rows.into_iter().filter_map(|(done, cell)| Some(Row { cell, finished: done? })).collect();
    table::print(&rows, &original);
    write_csv(&args.out.join("sweep.csv"), &table::COLUMNS, table::records(&rows, &original))?;
    let runs = rows.into_iter().filter_map(|row| row.finished.run).collect();
    let document = Document::new(format!("Sweep of {}", model.name()), "sweep", runs);
    write_json(&args.out.join("sweep.json"), &document)?;
    args.report.as_deref().map_or(Ok(()), |path| write_whole(path, &html::html(&document, &OptionNames)?))
}

/// A text to evaluate on, in windows of one length.
struct Text {
    name: String,
    seq_len: usize,
    windows: Vec<Vec<u32>>,
}

/// What every cell is measured with.
struct Measures {
    texts: Vec<Text>,
    tasks: Vec<Task>,
}

/// Every text in every length.
fn texts(args: &SweepArgs, model: &Checkpoint, seq_len: usize) -> Result<Vec<Text>> {
    let files = match args.text.is_empty() {
        true => vec![bundled::evaluation_text()],
        false => args.text.iter().map(|path| read_text_file(path)).collect::<Result<_>>()?,
    };
    let lengths = if args.eval_seq_len.is_empty() { vec![seq_len] } else { args.eval_seq_len.clone() };
    let mut texts = Vec::new();
    for file in &files {
        for &seq_len in &lengths {
            let windows = evaluation_windows(model, file, seq_len, args.windows)?;
            texts.push(Text { name: file.name.clone(), seq_len, windows });
        }
    }
    Ok(texts)
}

/// What all cells have in common.
struct Sweep<'a> {
    model: &'a Checkpoint,
    calibration: &'a Calibration,
    measures: Measures,
    store: Store,
    /// Of the original model's evaluation.
    base: Fingerprint,
    rec: Recorder,
    console: Console,
}

impl<'a> Sweep<'a> {
    fn new(
        model: &'a Checkpoint,
        device: &Device,
        calibration: &'a Calibration,
        measures: Measures,
        store: Store,
    ) -> Result<Self> {
        let texts = measures.texts.iter().map(|text| (text.name.as_str(), text.windows.as_slice()));
        let evaluation = Some(texts_hash(texts, &measures.tasks));
        let base = Fingerprint { evaluation, ..Fingerprint::new(model, device)? };
        Ok(Self { model, calibration, measures, store, base, rec: Recorder::new(device), console: Console::new() })
    }

    /// Of a cell, or of the original model.
    fn fingerprint(&self, cell: Option<&Cell>) -> Result<Fingerprint> {
        let Some(cell) = cell else { return Ok(self.base.clone()) };
        Ok(self.base.quantized(&cell.options, &draw(self.calibration, &cell.options)?))
    }

    /// Runs the cells that have no result yet, those of the same windows `together` at a time.
    fn finish(&mut self, rows: &mut [(Option<Finished>, Cell)], together: usize) -> Result<Original> {
        let original = self.original()?;
        loop {
            let first = rows.iter().find(|(finished, _)| finished.is_none());
            let Some(seed) = first.map(|(_, cell)| cell.options.seed) else { return Ok(original) };
            let waiting = rows.iter_mut().filter(|(finished, cell)| finished.is_none() && cell.options.seed == seed);
            let mut batch: Vec<_> = waiting.take(together).collect();
            let cells: Vec<&Cell> = batch.iter().map(|(_, cell)| cell).collect();
            let results = self.quantize(&cells)?;
            for ((place, cell), (report, layers)) in batch.iter_mut().zip(results) {
                let finished = self.evaluate(cell, report, &layers, &original)?;
                self.store.save(&self.store.cell(&cell.name), &self.fingerprint(Some(cell))?, &finished)?;
                *place = Some(finished);
            }
        }
    }

    /// The original model on every text.
    fn original(&mut self) -> Result<Original> {
        let (path, fingerprint) = (self.store.original(), self.fingerprint(None)?);
        if let Some(original) = self.store.load(&path, &fingerprint)? {
            return Ok(original);
        }
        eprintln!("evaluating the original model");
        let original = Original {
            texts: (0..self.measures.texts.len()).map(|text| self.perplexity(text, None)).collect::<Result<_>>()?,
            tasks: (0..self.measures.tasks.len()).map(|task| self.accuracy(task, None)).collect::<Result<_>>()?,
        };
        self.store.save(&path, &fingerprint, &original)?;
        Ok(original)
    }

    fn perplexity(&mut self, text: usize, layers: Option<&Replacements>) -> Result<Evaluation> {
        let Text { name, seq_len, windows } = &self.measures.texts[text];
        let network = Network::new(&mut self.rec, self.model, layers, *seq_len)?;
        let measured = evaluate(&mut self.rec, &network, None, windows, &mut self.console);
        Ok(Evaluation::new(name, &pollster::block_on(measured)?))
    }

    fn accuracy(&mut self, task: usize, layers: Option<&Replacements>) -> Result<TaskResult> {
        let task = &self.measures.tasks[task];
        let answered = answer(&mut self.rec, self.model, layers, task, &mut self.console);
        Ok(TaskResult { log_likelihoods: Vec::new(), ..pollster::block_on(answered)? })
    }

    fn quantize(&mut self, cells: &[&Cell]) -> Result<Vec<(Result<Report>, Replacements)>> {
        cells.iter().for_each(|cell| eprintln!("next: {}", cell.label));
        let windows = draw(self.calibration, &cells[0].options)?;
        let memory = self.rec.memory().clone();
        attempt(&self.rec.device().clone(), memory, cells[0].options.seq_len, |rec| {
            let mut layers: Vec<Replacements> = cells.iter().map(|_| Replacements::new()).collect();
            let jobs = cells.iter().zip(&mut layers).map(|(cell, output)| Job::new(&cell.options, output)).collect();
            let reports = quantize_together(rec, self.model, &windows, jobs, &mut self.console);
            Ok(pollster::block_on(reports)?.into_iter().zip(layers).collect())
        })
    }

    /// A cell's result. Errors: what is no result, such as a device without memory.
    fn evaluate(
        &mut self,
        cell: &Cell,
        report: Result<Report>,
        layers: &Replacements,
        original: &Original,
    ) -> Result<Finished> {
        let report = match report {
            Err(failure) => {
                return Ok(Finished { run: None, tasks: Vec::new(), failure: Some(failure.sentence(&OptionNames)) });
            }
            Ok(report) => report,
        };
        let mut run = Run::new(&cell.label, self.model.name(), report);
        run.sizes = Some(cell.sizes);
        let mut tasks = Vec::new();
        let failure = match self.measure(cell, layers, original, (&mut run.evaluations, &mut tasks)) {
            Ok(()) => None,
            Err(error @ Error::NotFinite { .. }) => Some(error.sentence(&OptionNames)),
            Err(error) => return Err(error),
        };
        Ok(Finished { run: Some(run), tasks, failure })
    }

    /// All perplexities and accuracies, as far as the quantized model gives numbers.
    fn measure(
        &mut self,
        cell: &Cell,
        layers: &Replacements,
        original: &Original,
        (evaluations, tasks): (&mut Vec<Evaluation>, &mut Vec<TaskResult>),
    ) -> Result<()> {
        for (text, original) in original.texts.iter().enumerate() {
            let original_perplexity = Some(original.perplexity);
            let evaluation = Evaluation { original_perplexity, ..self.perplexity(text, Some(layers))? };
            eprintln!("{}: perplexity {:.3}", cell.label, evaluation.perplexity);
            evaluations.push(evaluation);
        }
        for task in 0..original.tasks.len() {
            let result = self.accuracy(task, Some(layers))?;
            eprintln!("{}: accuracy {:.2} % in {}", cell.label, 100.0 * result.accuracy, result.task);
            tasks.push(result);
        }
        Ok(())
    }
}
