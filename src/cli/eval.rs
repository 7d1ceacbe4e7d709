//! `aquatint eval`.

use aquatint::checkpoint::read_text_file;
use aquatint::device::Recorder;
use aquatint::eval::{Evaluation, evaluate};
use aquatint::model::network::Network;
use aquatint::{Calibration, Checkpoint, Error, Result, Sampling, TextFile, bundled};
use serde::Serialize;

use super::args::EvalArgs;
use super::console::Console;
use super::{open_device, open_model, write_json};

/// What `--json` writes.
#[derive(Serialize)]
struct Record<'a> {
    aquatint: &'static str,
    model: &'a str,
    text: &'a str,
    device: String,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

/// Evaluates and prints.
pub fn run(args: EvalArgs) -> Result<()> {
    let model = open_model(args.model.as_deref())?;
    let against = args.against.as_deref().map(|path| open_model(Some(path))).transpose()?;
    let text = match &args.text {
        Some(path) => read_text_file(path)?,
        None => bundled::evaluation_text(),
    };
    let windows = evaluation_windows(&model, &text, args.seq_len, args.windows)?;
    let device = open_device(&args.device)?;
    let mut rec = Recorder::new(&device);
    let network = Network::new(&mut rec, &model, None, args.seq_len)?;
    let other = against.as_ref().map(|other| Network::new(&mut rec, other, None, args.seq_len)).transpose()?;
    let mut console = Console::new();
    let result = evaluate(&mut rec, &network, other.as_ref(), &windows, &mut console);
    let evaluation = pollster::block_on(result)?;
    drop(console);
    println!(
        "perplexity {:.4} on {} predicted tokens ({} windows of {})",
        evaluation.perplexity, evaluation.predicted, evaluation.windows, evaluation.seq_len
    );
    if let Some(against) = &evaluation.against {
        println!(
            "against: perplexity {:.4}, KL {:.6} nats per token, top-1 agreement {:.2} %",
            against.perplexity,
            against.kl,
            100.0 * against.top1_agreement
        );
    }
    let record = Record {
        aquatint: env!("CARGO_PKG_VERSION"),
        model: model.name(),
        text: &text.name,
        device: device.name(),
        evaluation: &evaluation,
    };
    args.json.as_deref().map_or(Ok(()), |path| write_json(path, &record))
}

/// The first windows of the text, all of them if no number is given.
pub fn evaluation_windows(
    model: &Checkpoint,
    text: &TextFile,
    seq_len: usize,
    count: Option<usize>,
) -> Result<Vec<Vec<u32>>> {
    if seq_len < 2 {
        let found = seq_len.to_string();
        return Err(Error::input("--seq-len", found, "at least 2, to predict something", "use 1024"));
    }
    let tokenizer = pollster::block_on(model.tokenizer())?;
    let tokens = Calibration::from_texts(&tokenizer, std::slice::from_ref(text), model.config().vocab_size)?;
    let count = count.unwrap_or_else(|| tokens.sequential_windows(seq_len).max(1));
    if count == 0 {
        return Err(Error::input("--windows", "0", "at least 1", "leave it out to use the whole text"));
    }
    tokens.windows(count, seq_len, Sampling::Sequential, 0)
}
