//! Answers multiple-choice questions by log-likelihood: the answer of a model is the choice to which it gives the
//! highest log-likelihood after the context.
//!
//! Tokens and accuracies are computed as in EleutherAI's lm-evaluation-harness (docs/tasks.md).

use serde::{Deserialize, Serialize};

use super::{HEAD_TOKENS, through_blocks};
use crate::calibration::TextFile;
use crate::checkpoint::Checkpoint;
use crate::device::{Recorder, Tensor};
use crate::engine::network::{Head, Network};
use crate::observer::{Event, Observer};
use crate::ops::nll;
use crate::stored::Replacements;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Approximate number of tokens whose hidden states are in memory at the same time.
const PORTION_TOKENS: usize = 1 << 16;

/// A multiple-choice question: a context and the choices that may follow it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Question {
    /// The text before every choice.
    #[serde(alias = "query")]
    pub context: String,
    /// The choices as they follow the context, including the space between the two if there is one.
    pub choices: Vec<String>,
    /// Index of the correct choice.
    #[serde(alias = "gold")]
    pub answer: usize,
}

/// The questions of one file.
#[derive(Debug, Clone)]
pub struct Task {
    /// The name of the file in messages.
    pub name: String,
    /// The questions in file order.
    pub questions: Vec<Question>,
}

/// The result of a model on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Name of the task.
    pub task: String,
    /// Number of questions.
    pub questions: usize,
    /// Share of questions whose correct choice has the highest log-likelihood. If several choices share the highest
    /// value, the first of them is the answer.
    pub accuracy: f64,
    /// Standard error of the accuracy p, which is a mean: √(p(1 − p)/(questions − 1)). 0 for a single question.
    pub accuracy_error: f64,
    /// The accuracy with log-likelihoods divided by the number of characters of the choice, not counting leading white
    /// space.
    pub normalised_accuracy: f64,
    /// Standard error of the normalised accuracy.
    pub normalised_error: f64,
    /// ln p(choice | context) in nats, for each choice of each question. Empty if they were not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<Vec<f64>>,
}

/// The tokens of a context followed by one choice.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    /// Tokens of context and choice without the last token, which predicts nothing.
    input: Vec<u32>,
    /// Tokens of the choice. They are predicted at the last positions of `input`.
    targets: Vec<u32>,
}

impl Task {
    /// Reads a file with one JSON object per line: `context` (or `query`), `choices` and `answer` (or `gold`). Other
    /// keys are ignored.
    ///
    /// Errors: `Error::Input` naming file and line.
    pub fn parse(file: &TextFile) -> Result<Self> {
        let text = std::str::from_utf8(&file.bytes).map_err(|error| {
            let found = format!("bytes that are not UTF-8 (at {})", error.valid_up_to());
            Error::input(&file.name, found, "UTF-8 text", "convert the file to UTF-8")
        })?;
        let mut questions = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            questions.push(parse_line(&format!("{}, line {}", file.name, index + 1), line)?);
        }
        if questions.is_empty() {
            let expected = "a question per line, as JSON";
            return Err(Error::input(&file.name, "no questions", expected, "see docs/tasks.md for the format"));
        }
        Ok(Self { name: file.name.clone(), questions })
    }

    /// Computes the accuracies. `log_likelihoods` holds one number per choice, question by question.
    fn result(&self, log_likelihoods: Vec<Vec<f64>>) -> TaskResult {
        let count = self.questions.len() as f64;
        let share = |right: &dyn Fn(&Question, &[f64]) -> bool| {
            let scored = self.questions.iter().zip(&log_likelihoods);
            scored.filter(|(question, scores)| right(question, scores)).count() as f64 / count
        };
        let error = |share: f64| if count > 1.0 { (share * (1.0 - share) / (count - 1.0)).sqrt() } else { 0.0 };
        let accuracy = share(&|question, scores| likeliest(scores) == question.answer);
        let normalised_accuracy = share(&|question, scores| {
            let length = |choice: &String| choice.trim_start().chars().count().max(1) as f64;
            let per_character: Vec<f64> =
                scores.iter().zip(&question.choices).map(|(score, choice)| score / length(choice)).collect();
            likeliest(&per_character) == question.answer
        });
        TaskResult {
            task: self.name.clone(),
            questions: self.questions.len(),
            accuracy,
            accuracy_error: error(accuracy),
            normalised_accuracy,
            normalised_error: error(normalised_accuracy),
            log_likelihoods,
        }
    }
}

/// Reads and checks the question in one line. `place`: file and line, for messages.
fn parse_line(place: &str, line: &str) -> Result<Question> {
    let refuse = |found: String, expected: &str| {
        Err(Error::input(place, found, expected, "correct the line; docs/tasks.md describes the format"))
    };
    let question: Question = match serde_json::from_str(line) {
        Ok(question) => question,
        Err(error) => {
            let expected = "a JSON object with a \"context\" string, a list \"choices\" and a number \"answer\"";
            return refuse(format!("something else ({error})"), expected);
        }
    };
    let count = question.choices.len();
    if count < 2 {
        return refuse(format!("{count} choices"), "at least two");
    }
    if question.choices.iter().any(|choice| choice.trim().is_empty()) {
        return refuse("an empty choice".to_string(), "choices with text in them");
    }
    if question.answer >= count {
        return refuse(format!("answer {} of {count} choices", question.answer), "an index, the first choice being 0");
    }
    Ok(question)
}

/// Index of the greatest score. If several are equal, the first of them.
fn likeliest(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |best, index| if scores[index] > scores[best] { index } else { best })
}

/// Answers the questions of `task` with the model in `checkpoint`. `replacements` replace layers and tensors of the
/// same name.
///
/// Each choice is scored after its own copy of the context. A text with more tokens than the model has positions loses
/// its beginning.
///
/// Errors: `Error::Input` naming the question if its context has no tokens or a choice is too long to be read whole;
/// `Error::Input` if the tokenizer does not fit the model; `Error::NotFinite` if logits are not finite; errors of the
/// device; `Error::Cancelled`.
pub async fn answer(
    rec: &mut Recorder,
    checkpoint: &Checkpoint,
    replacements: Option<&Replacements>,
    task: &Task,
    observer: &mut dyn Observer,
) -> Result<TaskResult> {
    let tokenizer = checkpoint.tokenizer().await?;
    let config = checkpoint.config();
    let mut readings = Vec::new();
    for (index, question) in task.questions.iter().enumerate() {
        let place = format!("{}, question {}", task.name, index + 1);
        for choice in &question.choices {
            let reading = Reading::new(&tokenizer, &question.context, choice, config.max_position_embeddings, &place)?;
            if let Some(id) = reading.input.iter().chain(&reading.targets).find(|&&id| id as usize >= config.vocab_size)
            {
                let expected = format!("ids below the vocabulary of {} in config.json", config.vocab_size);
                let remedy = "use the tokenizer.json that belongs to the model";
                return Err(Error::input(place, format!("token {id} from tokenizer.json"), expected, remedy));
            }
            readings.push(reading);
        }
    }
    let longest = readings.iter().map(|reading| reading.input.len()).max().unwrap_or(1);
    let network = Network::new(rec, checkpoint, replacements, longest)?;
    let scores = score(rec, &network, &readings, observer).await?;
    let mut rest = scores.as_slice();
    let per_question = task.questions.iter().map(|question| {
        let (scores, after) = rest.split_at(question.choices.len());
        rest = after;
        scores.to_vec()
    });
    Ok(task.result(per_question.collect()))
}

impl Reading {
    /// Encodes context and choice in one piece. The choice begins where the tokens of the context alone end. White
    /// space at the end of the context belongs to the choice. `longest`: the number of tokens that the model can read.
    ///
    /// Errors: `Error::Input` if the context has no tokens, or if the choice adds none or has too many.
    fn new(tokenizer: &Tokenizer, context: &str, choice: &str, longest: usize, place: &str) -> Result<Self> {
        let start = tokenizer.encode(context.trim_end())?.len();
        let whole = tokenizer.encode(&format!("{context}{choice}"))?;
        if start == 0 || start >= whole.len() {
            let (found, expected) = match start {
                0 => ("a context without tokens", "some text before the choices"),
                _ => ("a choice that adds no token", "choices that add to their context"),
            };
            return Err(Error::input(place, found, expected, "correct the question"));
        }
        let targets = whole[start..].to_vec();
        if targets.len() > longest {
            let found = format!("a choice of {} tokens", targets.len());
            let expected = format!("at most {longest}, the positions of the model");
            return Err(Error::input(place, found, expected, "shorten the choice"));
        }
        let input = &whole[..whole.len() - 1];
        Ok(Self { input: input[input.len().saturating_sub(longest)..].to_vec(), targets })
    }
}

/// The log-likelihood of the targets of each reading.
///
/// Readings of about the same length are computed together. Shorter ones are padded at the end, which changes nothing,
/// since a token depends only on those before it.
async fn score(
    rec: &mut Recorder,
    network: &Network<'_>,
    readings: &[Reading],
    observer: &mut dyn Observer,
) -> Result<Vec<f64>> {
    let mut order: Vec<usize> = (0..readings.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(readings[index].input.len()));
    let head = network.head(rec).await?;
    let mut scores = vec![0.0; readings.len()];
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let (mut chunks, mut tokens) = (Vec::new(), 0);
        while !rest.is_empty() && tokens < PORTION_TOKENS {
            let length = readings[rest[0]].input.len();
            let (chunk, after) = rest.split_at(network.sequences_of(rec, length)?.min(rest.len()));
            tokens += chunk.len() * length;
            chunks.push((chunk, length));
            rest = after;
        }
        let filled: Vec<Vec<Vec<u32>>> =
            chunks.iter().map(|(chunk, length)| padded_inputs(readings, chunk, *length)).collect();
        let hidden = network.embed(rec, &filled.iter().map(Vec::as_slice).collect::<Vec<_>>()).await?;
        let lengths: Vec<usize> = chunks.iter().map(|(_, length)| *length).collect();
        let hidden = through_blocks(rec, network, hidden, &lengths, observer).await?;
        for ((chunk, length), hidden) in chunks.iter().zip(&hidden) {
            let chunk: Vec<(usize, &Reading)> = chunk.iter().map(|&index| (index, &readings[index])).collect();
            for (index, score) in score_chunk(rec, &head, hidden, &chunk, *length).await? {
                scores[index] += score;
            }
        }
        observer.event(&Event::EvaluationHead { scored: readings.len() - rest.len(), windows: readings.len() });
    }
    if scores.iter().all(|score| score.is_finite()) {
        return Ok(scores);
    }
    Err(Error::NotFinite {
        place: "the model's log-likelihood".to_string(),
        remedy: "check the checkpoint, its weights overflow in this text".into(),
    })
}

/// The inputs of the readings in `chunk`, padded to `length` tokens each.
fn padded_inputs(readings: &[Reading], chunk: &[usize], length: usize) -> Vec<Vec<u32>> {
    let filled = |index: &usize| {
        let mut input = readings[*index].input.clone();
        input.resize(length, 0);
        input
    };
    chunk.iter().map(filled).collect()
}

/// For each target token of the chunk, the index of its reading and ln p of the token.
///
/// `hidden` is the output of the last block, `[readings·length, hidden]`.
async fn score_chunk(
    rec: &mut Recorder,
    head: &Head,
    hidden: &Tensor,
    chunk: &[(usize, &Reading)],
    length: usize,
) -> Result<Vec<(usize, f64)>> {
    let width = hidden.shape()[1];
    let values = rec.read(hidden).await?;
    let targets = chunk.iter().enumerate().flat_map(|(sequence, &(index, reading))| {
        let first = sequence * length + reading.input.len() - reading.targets.len();
        reading.targets.iter().enumerate().map(move |(offset, &target)| (index, first + offset, target))
    });
    let targets: Vec<(usize, usize, u32)> = targets.collect();
    let mut scores = Vec::new();
    for slice in targets.chunks(HEAD_TOKENS) {
        let rows = slice.iter().flat_map(|&(_, row, _)| &values[row * width..(row + 1) * width]).copied().collect();
        let rows = rec.upload(&[slice.len(), width], rows)?;
        let wanted = rec.upload(&[slice.len()], slice.iter().map(|&(_, _, target)| target).collect())?;
        let normalised = head.normalise(rec, &rows)?;
        let mut state = nll::start(rec, slice.len())?;
        for (slab, first) in head.slab_starts().enumerate() {
            let logits = head.logits(rec, &normalised, slab)?;
            nll::accumulate(rec, &logits, first, &wanted, &mut state)?;
        }
        let found = nll::finish(&rec.read(&state).await?);
        scores.extend(slice.iter().zip(found).map(|(&(index, ..), score)| (index, -score.nll)));
    }
    Ok(scores)
}
