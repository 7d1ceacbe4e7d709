//! `aquatint eval`: perplexity on a text and accuracy in tasks, of one model or beside another.

use aquatint::checkpoint::read_text_file;
use aquatint::device::{Precision, Recorder};
use aquatint::eval::Evaluation;
use aquatint::eval::tasks::{Task, TaskResult, answer};
use aquatint::study::evaluation::{Evaluated, EvaluationText};
use aquatint::study::files::write_json;
use aquatint::{Calibration, Checkpoint, Error, Result, Sampling, TextFile, bundled};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::args::EvalArgs;
use super::console::Console;
use super::memory::MemoryArgs;
use super::{open_device, open_model};

/// What `--json` writes.
#[derive(Serialize)]
struct Record<'a> {
    aquatint: &'static str,
    model: &'a str,
    device: String,
    precision: Precision,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(flatten)]
    evaluation: Option<Evaluation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<Answered>,
}

/// A task with the results of one model or two.
#[derive(Serialize)]
struct Answered {
    #[serde(flatten)]
    result: TaskResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<TaskResult>,
}

/// Evaluates and prints the results.
pub fn run(args: EvalArgs) -> Result<()> {
    let model = open_model(args.model.as_deref())?;
    let against = args.against.as_deref().map(|path| open_model(Some(path))).transpose()?;
    let text = args.seq_len.map(|seq_len| text(&args, &model, seq_len)).transpose()?;
    let tasks = args.tasks.iter().map(|path| Task::parse(&read_text_file(path)?)).collect::<Result<Vec<_>>>()?;
    let device = open_device(&args.device)?;
    let mut rec = Recorder::new(&device);
    rec.set_memory(MemoryArgs::default().resolve(&device, None)?);
    let mut console = Console::new();
    let evaluated = Evaluated { against: against.as_ref(), ..Evaluated::new(&model) };
    let evaluate = |text: &EvaluationText| pollster::block_on(text.evaluate(&mut rec, evaluated, &mut console));
    let evaluation = text.as_ref().map(evaluate).transpose()?;
    let mut answered = Vec::new();
    for task in &tasks {
        let mut answer = |model| pollster::block_on(answer(&mut rec, model, None, task, &mut console));
        let result = answer(&model)?;
        answered.push(Answered { result, against: against.as_ref().map(answer).transpose()? });
    }
    drop(console);
    evaluation.iter().for_each(print_perplexity);
    if !answered.is_empty() {
        say!("{}", table(&answered));
    }
    let text = text.map(|text| text.name);
    let record = Record {
        aquatint: env!("CARGO_PKG_VERSION"),
        model: model.name(),
        device: device.name(),
        precision: device.precision(),
        text,
        evaluation,
        tasks: answered,
    };
    args.json.as_deref().map_or(Ok(()), |path| write_json(path, &record))
}

/// The text of `--text`, or the bundled one, in windows of `seq_len` tokens.
fn text(args: &EvalArgs, model: &Checkpoint, seq_len: usize) -> Result<EvaluationText> {
    let file = match &args.text {
        Some(path) => read_text_file(path)?,
        None => bundled::evaluation_text(),
    };
    evaluation_text(model, file, seq_len, args.windows)
}

fn print_perplexity(evaluation: &Evaluation) {
    say!(
        "perplexity {:.4} on {} predicted tokens ({} windows of {})",
        evaluation.perplexity,
        evaluation.predicted,
        evaluation.windows,
        evaluation.seq_len
    );
    if let Some(against) = &evaluation.against {
        say!(
            "against: perplexity {:.4}, KL {:.6} nats per token, top-1 agreement {:.2} %",
            against.perplexity,
            against.kl,
            100.0 * against.top1_agreement
        );
    }
}

/// A table with a row per task and model.
fn table(answered: &[Answered]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(vec!["task", "questions", "accuracy", "per character"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let percent = |share: f64, error: f64| format!("{:.2} % ± {:.2}", 100.0 * share, 100.0 * error);
    let mut row = |label: String, result: &TaskResult| {
        let accuracy = percent(result.accuracy, result.accuracy_error);
        let normalised = percent(result.normalised_accuracy, result.normalised_error);
        table.add_row(vec![label, result.questions.to_string(), accuracy, normalised]);
    };
    for Answered { result, against } in answered {
        row(result.task.clone(), result);
        if let Some(against) = against {
            row("against".to_string(), against);
        }
    }
    table
}

/// A text in its first `count` windows of `seq_len` tokens of `model`; in all of them if `count` is `None`.
pub fn evaluation_text(
    model: &Checkpoint,
    file: TextFile,
    seq_len: usize,
    count: Option<usize>,
) -> Result<EvaluationText> {
    if seq_len < 2 {
        let found = seq_len.to_string();
        return Err(Error::input("--seq-len", found, "at least 2, to predict something", "use 1024"));
    }
    let tokenizer = pollster::block_on(model.tokenizer())?;
    let tokens = Calibration::from_texts(&tokenizer, std::slice::from_ref(&file), model.config().vocab_size)?;
    let count = count.unwrap_or_else(|| tokens.sequential_windows(seq_len).max(1));
    if count == 0 {
        return Err(Error::input("--windows", "0", "at least 1", "leave it out to use the whole text"));
    }
    let windows = tokens.windows(count, seq_len, Sampling::Sequential, 0)?;
    Ok(EvaluationText { name: file.name, windows })
}
