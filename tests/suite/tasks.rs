//! Multiple-choice tasks: log-likelihoods, compared with float64 over whole logits, and the scores made of them.

use std::process::Command;

use crate::common::{device_tests, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::engine::network::Network;
use aquatint::eval::logits;
use aquatint::eval::tasks::{Question, Task, TaskResult, answer};
use aquatint::{Checkpoint, Error, TextFile, bundled};
use pollster::block_on;
use serde_json::{Value, json};
use tempfile::TempDir;

fn task(lines: &str) -> aquatint::Result<Task> {
    Task::parse(&TextFile { name: "task.jsonl".to_string(), bytes: lines.as_bytes().to_vec().into() })
}

/// Beginnings of paragraphs of the evaluation text, each with four ways to go on: its own words, and the same in three other
/// orders.
fn cloze(count: usize) -> Task {
    let text = String::from_utf8(bundled::evaluation_text().bytes.to_vec()).unwrap();
    let lines = text.lines().filter(|line| line.split(' ').count() > 40).take(count).enumerate();
    let question = |(index, line): (usize, &str)| {
        let words: Vec<&str> = line.split(' ').collect();
        let orders = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 4, 1, 5, 2], [1, 0, 3, 2, 5, 4]];
        let choice = |order: [usize; 6]| order.map(|word| format!(" {}", words[24 + word])).concat();
        let mut choices = orders.map(choice).to_vec();
        choices.rotate_right(index % 4);
        Question { context: words[..24].join(" "), choices, answer: index % 4 }
    };
    Task { name: "cloze".to_string(), questions: lines.map(question).collect() }
}

fn answered(rec: &mut Recorder, model: &Checkpoint, task: &Task) -> TaskResult {
    block_on(answer(rec, model, None, task, &mut ())).unwrap()
}

/// ln p of the tokens of `whole` from `start` on, in float64, from the logits of all positions.
fn expected(model: &Checkpoint, whole: &[u32], start: usize) -> f64 {
    let mut rec = recorder(&Device::Cpu);
    let vocab = model.config().vocab_size;
    let network = Network::new(&mut rec, model, None, whole.len()).unwrap();
    let logits = block_on(logits(&mut rec, &network, &[whole.to_vec()])).unwrap();
    let log_p = |position: usize| {
        let row: Vec<f64> = logits[(position - 1) * vocab..position * vocab].iter().map(|&x| f64::from(x)).collect();
        let largest = row.iter().fold(f64::MIN, |a, &b| a.max(b));
        let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
        row[whole[position] as usize] - largest - sum.ln()
    };
    (start..whole.len()).map(log_p).sum()
}

device_tests!(log_likelihoods_are_those_of_the_whole_logits: cpu, software_gpu);
fn log_likelihoods_are_those_of_the_whole_logits(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let tokenizer = block_on(model.tokenizer()).unwrap();
    let mut task = cloze(6);
    task.questions.push(Question {
        context: "Its name is ".to_string(),
        choices: vec!["Łódź".to_string(), "a".to_string(), "something of many more words than that".to_string()],
        answer: 0,
    });
    let result = answered(&mut recorder(&device), &model, &task);
    for (question, scores) in task.questions.iter().zip(&result.log_likelihoods) {
        let start = tokenizer.encode(question.context.trim_end()).unwrap().len();
        assert_eq!(scores.len(), question.choices.len());
        for (choice, score) in question.choices.iter().zip(scores) {
            let whole = tokenizer.encode(&format!("{}{choice}", question.context)).unwrap();
            let expected = expected(&model, &whole, start);
            let apart = (score - expected).abs() / expected.abs();
            assert!(apart < 1e-4, "{choice:?} on {}: {score}, expected {expected}", device.name());
        }
    }
}

#[test]
fn a_text_longer_than_the_model_can_read_loses_its_beginning() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let tokenizer = block_on(model.tokenizer()).unwrap();
    let longest = model.config().max_position_embeddings;
    let context = "A city in the north of the country. ".repeat(longest / 4);
    let choices = vec!["It was founded by kings.".to_string(), "Purple the of and".to_string()];
    let task = Task { name: "long".to_string(), questions: vec![Question { context, choices, answer: 0 }] };
    let question = &task.questions[0];
    let whole = tokenizer.encode(&format!("{}{}", question.context, question.choices[0])).unwrap();
    let start = tokenizer.encode(question.context.trim_end()).unwrap().len();
    assert!(start > longest);
    // The last token is predicted and never read.
    let cut = whole.len() - 1 - longest;
    let expected = expected(&model, &whole[cut..], start - cut);
    let result = answered(&mut recorder(&Device::Cpu), &model, &task);
    let score = result.log_likelihoods[0][0];
    assert!((score - expected).abs() < 1e-4 * expected.abs(), "{score}, expected {expected}");
    let long = Question { choices: vec!["word ".repeat(2 * longest), "a".to_string()], ..question.clone() };
    let task = Task { name: "long".to_string(), questions: vec![question.clone(), long] };
    let error = block_on(answer(&mut recorder(&Device::Cpu), &model, None, &task, &mut ())).unwrap_err();
    assert!(error.to_string().starts_with("long, question 2: found a choice of "), "{error}");
}

#[test]
fn accuracy_is_better_than_chance_and_does_not_depend_on_the_order_of_choices() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let mut rec = recorder(&Device::Cpu);
    let mut task = cloze(24);
    let count = task.questions.len() as f64;
    let result = answered(&mut rec, &model, &task);
    assert!(result.accuracy > 0.5, "{} of four choices", result.accuracy);
    let right = |index: usize| {
        let (scores, answer) = (&result.log_likelihoods[index], task.questions[index].answer);
        scores.iter().enumerate().all(|(choice, score)| choice == answer || *score < scores[answer])
    };
    let share = (0..task.questions.len()).filter(|&index| right(index)).count() as f64 / count;
    assert_eq!(result.accuracy, share);
    assert!((result.accuracy_error - (share * (1.0 - share) / (count - 1.0)).sqrt()).abs() < 1e-12);
    for (index, question) in task.questions.iter_mut().enumerate() {
        let by = 1 + index % 3;
        question.choices.rotate_left(by);
        question.answer = (question.answer + 4 - by) % 4;
    }
    let turned = answered(&mut rec, &model, &task);
    assert_eq!((turned.accuracy, turned.normalised_accuracy), (result.accuracy, result.normalised_accuracy));
    for question in &mut task.questions {
        question.answer = (question.answer + 1) % 4;
    }
    assert!(answered(&mut rec, &model, &task).accuracy < 0.4, "wrong answers count as right");
}

#[test]
fn normalised_accuracy_divides_by_the_characters_of_a_choice() {
    let model = block_on(bundled::checkpoint()).unwrap();
    // The long choice is less likely as a whole, and more likely per character.
    let choices = vec![" of".to_string(), " of the city of the city of the city of the city".to_string()];
    let question = Question { context: "The history of the city".to_string(), choices, answer: 1 };
    let task = Task { name: "length".to_string(), questions: vec![question] };
    let result = answered(&mut recorder(&Device::Cpu), &model, &task);
    let [short, long] = result.log_likelihoods[0][..] else { panic!("two choices") };
    assert!(long < short && long / 47.0 > short / 2.0, "{short} and {long}");
    assert_eq!((result.accuracy, result.normalised_accuracy), (0.0, 1.0));
    assert_eq!(result.accuracy_error, 0.0);
}

#[test]
fn both_spellings_are_read_and_bad_lines_are_named() {
    let good = json!({"context": "a", "choices": ["b", "c"], "answer": 1, "id": 7}).to_string();
    let spelled = json!({"query": "a", "choices": ["b", "c"], "gold": 1}).to_string();
    let read = task(&format!("{good}\n\n{spelled}\n")).unwrap();
    assert_eq!(read.questions.len(), 2);
    assert_eq!(read.questions[0], read.questions[1]);
    for (line, part) in [
        ("{", "something else"),
        (r#"{"context": "a", "choices": ["b", "c"]}"#, "answer"),
        (r#"{"context": "a", "choices": ["b", "c"], "answer": -1}"#, "something else"),
        (r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#, "answer 2 of 2 choices"),
        (r#"{"context": "a", "choices": ["b"], "answer": 0}"#, "1 choices"),
        (r#"{"context": "a", "choices": ["b", " "], "answer": 0}"#, "an empty choice"),
    ] {
        let error = task(&format!("{good}\n{line}\n")).unwrap_err();
        assert!(matches!(error, Error::Input { .. }));
        let sentence = error.to_string();
        assert!(sentence.starts_with("task.jsonl, line 2: found") && sentence.contains(part), "{sentence}");
    }
    assert!(task(" \n").unwrap_err().to_string().contains("no questions"));
}

#[test]
fn the_command_prints_accuracies_and_records_them() {
    let scratch = TempDir::new().unwrap();
    let (file, record) = (scratch.path().join("cloze.jsonl"), scratch.path().join("record.json"));
    let line = |question: &Question| {
        json!({"context": question.context, "choices": question.choices, "answer": question.answer}).to_string()
    };
    let lines: Vec<String> = cloze(8).questions.iter().map(line).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let eval = |file: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aquatint"));
        command.args(["eval", "--device", "cpu", "--tasks"]).arg(file);
        command
    };
    let output = eval(&file).arg("--json").arg(&record).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("cloze.jsonl") && said.contains(" % ± "), "{said}");
    let record: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    assert_eq!(record["tasks"][0]["questions"], 8);
    assert_eq!(record["tasks"][0]["log_likelihoods"].as_array().unwrap().len(), 8);
    assert!(record.get("perplexity").is_none());
    std::fs::write(&file, format!("{}\n{{}}", lines[0])).unwrap();
    let output = eval(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("cloze.jsonl, line 2: found"), "{said}");
}
