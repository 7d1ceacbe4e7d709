//! `aquatint sweep`: runs the cells of `study::sweep` and prints one table of them.

mod table;

use aquatint::checkpoint::read_text_file;
use aquatint::device::Recorder;
use aquatint::eval::tasks::Task;
use aquatint::report::{Document, html};
use aquatint::study::evaluation::EvaluationText;
use aquatint::study::files::{write_json, write_whole};
use aquatint::study::sweep::{
    DirectoryStore, Entry, ForeignResult, Grid, Sweep, SweepEvent, SweepObserver, SweepSetup,
};
use aquatint::{Checkpoint, Error, Result, bundled};

use super::args::SweepArgs;
use super::console::Console;
use super::eval::evaluation_text;
use super::names::OptionNames;
use super::quantize::calibration_tokens;
use super::{check_writable, open_device, open_model, write_csv};

/// Runs the cells that are not finished, and prints and writes all results.
pub fn run(args: SweepArgs) -> Result<()> {
    check_writable(&[("--report", args.report.as_deref())])?;
    let model = open_model(args.model.as_deref())?;
    let Grid { cells, skipped } = grid(&args, &model)?;
    skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
    if args.together == 0 {
        return Err(Error::input("--together", "0", "at least 1", "use 4 or leave it out"));
    }
    let setup = SweepSetup {
        model: &model,
        calibration: &calibration_tokens(&model, &args.calibration)?,
        texts: texts(&args, &model, cells[0].options.seq_len)?,
        tasks: args.tasks.iter().map(|path| Task::parse(&read_text_file(path)?)).collect::<Result<_>>()?,
        foreign: if args.force { ForeignResult::Replace } else { ForeignResult::Refuse },
    };
    let device = open_device(&args.device)?;
    let mut rec = Recorder::new(&device);
    rec.set_memory(args.memory.resolve(&device, Some(&args.out))?);
    let mut store = DirectoryStore::new(&args.out);
    let mut sweep = pollster::block_on(Sweep::new(rec, setup, &mut store))?;
    let entries = sweep.entries(cells)?;
    let waiting: Vec<&Entry> = entries.iter().filter(|entry| entry.finished.is_none()).collect();
    say!("{} cells, {} of them finished in {}", entries.len(), entries.len() - waiting.len(), args.out.display());
    if args.dry_run {
        waiting.iter().for_each(|entry| say!("{}", entry.cell.label));
        return Ok(());
    }
    let finished = pollster::block_on(sweep.finish(entries, args.together, &mut Console::new()));
    if matches!(finished, Err(Error::Cancelled)) {
        eprintln!("finished cells are kept in {}; the same command goes on from there", args.out.display());
    }
    let (original, rows) = finished?;
    table::print(&rows, &original);
    write_csv(&args.out.join("sweep.csv"), &table::COLUMNS, table::records(&rows, &original))?;
    let runs = rows.into_iter().filter_map(|row| row.finished.run).collect();
    let document = Document::new(format!("Sweep of {}", model.name()), "sweep", runs);
    write_json(&args.out.join("sweep.json"), &document)?;
    args.report.as_deref().map_or(Ok(()), |path| write_whole(path, html::html(&document, &OptionNames)?.as_bytes()))
}

/// The cells that the options ask for; at least one.
fn grid(args: &SweepArgs, model: &Checkpoint) -> Result<Grid> {
    let options_of = |variant: &_| args.details.options(variant, &args.calibration, model.config());
    let grid = pollster::block_on(Grid::new(model, &args.axes(), options_of))?;
    if grid.cells.is_empty() {
        let remedy = "give --methods, --bits, --group-sizes and --alphas a value each, or leave them out";
        return Err(Error::input("the sweep", "no combination of options", "at least one", remedy));
    }
    Ok(grid)
}

/// Every text in every length.
fn texts(args: &SweepArgs, model: &Checkpoint, seq_len: usize) -> Result<Vec<EvaluationText>> {
    let files = match args.text.is_empty() {
        true => vec![bundled::evaluation_text()],
        false => args.text.iter().map(|path| read_text_file(path)).collect::<Result<_>>()?,
    };
    let lengths = if args.eval_seq_len.is_empty() { vec![seq_len] } else { args.eval_seq_len.clone() };
    let mut texts = Vec::new();
    for file in &files {
        for &seq_len in &lengths {
            texts.push(evaluation_text(model, file.clone(), seq_len, args.windows)?);
        }
    }
    Ok(texts)
}

impl SweepObserver for Console {
    fn sweep_event(&mut self, event: &SweepEvent<'_>) {
        match event {
            SweepEvent::Original => eprintln!("evaluating the original model"),
            SweepEvent::Cell(cell) => eprintln!("next: {}", cell.label),
            SweepEvent::Perplexity(cell, measured) => {
                eprintln!("{}: perplexity {:.3}", cell.label, measured.perplexity);
            }
            SweepEvent::Accuracy(cell, measured) => {
                let percent = 100.0 * measured.accuracy;
                eprintln!("{}: accuracy {percent:.2} % in {}", cell.label, measured.task);
            }
        }
    }

    fn sentence(&self, error: &Error) -> String {
        error.sentence(&OptionNames)
    }
}
