//! The commands for experiments: `sweep`, stopped and resumed, and the results that it refuses to mix; `error-growth`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

use aquatint::study::fingerprint::kernels;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::running::{BINARY, Running, interruptible};

/// A sweep of four cells, each a quarter of a second long.
const SWEEP: [&str; 15] = [
    "sweep",
    "--methods",
    "rtn,gptq",
    "--bits",
    "3",
    "--alphas",
    "off,auto",
    "--samples",
    "4",
    "--seq-len",
    "64",
    "--windows",
    "4",
    "--device",
    "cpu",
];

fn command(directory: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(SWEEP).arg("--out").arg(directory).args(more);
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(parts.iter().all(|part| last.contains(part)), "no {parts:?} in: {last}");
}

/// The lines of a table, each by the names of its columns, without the times.
fn table(path: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let mut lines: Vec<BTreeMap<String, String>> = reader.deserialize().collect::<Result<_, _>>().unwrap();
    lines.iter_mut().for_each(|line| drop(line.remove("seconds")));
    lines
}

/// The files of a folder by name, each with the time of its last change and its bytes.
fn files(directory: &Path) -> BTreeMap<String, (SystemTime, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let file = |path: &Path| (fs::metadata(path).unwrap().modified().unwrap(), fs::read(path).unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), file(&entry.path()))).collect()
}

/// The document without times, and without the plan, which depends on how many runs go together.
fn document(path: &Path) -> Value {
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for run in document["runs"].as_array_mut().unwrap() {
        for clocked in ["seconds", "total_seconds", "plan"] {
            assert!(run.as_object_mut().unwrap().remove(clocked).is_some());
        }
    }
    document
}

/// Runs the sweep one cell at a time, and stops it when it begins the third. Returns what it says then.
fn stopped_after_two(directory: &Path, more: &[&str]) -> String {
    let mut command = interruptible();
    command.args(SWEEP).arg("--out").arg(directory).args(more).args(["--together", "1"]);
    let mut running = Running::start(command);
    for _ in 0..3 {
        running.wait_for("next: ");
    }
    let (status, rest) = running.interrupt();
    assert!(!status.success(), "{rest}");
    if cfg!(unix) {
        assert_eq!(status.code(), Some(130), "{rest}");
    }
    rest
}

#[test]
fn a_sweep_that_was_stopped_keeps_what_is_finished_and_ends_as_one_that_was_not() {
    let scratch = TempDir::new().unwrap();
    let (whole, stopped) = (scratch.path().join("whole"), scratch.path().join("stopped"));
    let task = scratch.path().join("task.jsonl");
    fs::write(&task, r#"{"context": "The city of", "choices": [" Paris is", " is Paris"], "answer": 0}"#).unwrap();
    let more = ["--tasks", task.to_str().unwrap()];
    let said = succeed(command(&whole, &[&more[..], &["--together", "3"]].concat()));
    assert!(said.contains("4 cells, 0 of them finished") && said.contains("full precision"), "{said}");
    assert!(said.contains("task.jsonl, %"), "{said}");
    let rest = stopped_after_two(&stopped, &more);
    if cfg!(unix) {
        assert!(rest.contains("finished cells are kept in"), "{rest}");
    }
    let before = files(&stopped.join("cells"));
    assert!((2..4).contains(&before.len()), "{:?}", before.keys());
    assert!(!stopped.join("sweep.csv").exists());
    let said = succeed(command(&stopped, &more));
    assert!(said.contains(&format!("4 cells, {} of them finished", before.len())), "{said}");
    let after = files(&stopped.join("cells"));
    assert_eq!(after.len(), 4);
    assert!(before.iter().all(|(name, file)| after[name] == *file), "a finished cell was written again");
    let lines = table(&stopped.join("sweep.csv"));
    assert_eq!(lines.len(), 8);
    assert_eq!(lines, table(&whole.join("sweep.csv")));
    assert_eq!(document(&stopped.join("sweep.json")), document(&whole.join("sweep.json")));
    // A third run finds nothing left to do.
    succeed(command(&stopped, &more));
    assert_eq!(after, files(&stopped.join("cells")));
    let (texts, tasks): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line["accuracy"].is_empty());
    let number = |line: &BTreeMap<String, String>, column: &str| line[column].parse::<f64>().unwrap();
    assert_eq!((texts.len(), tasks.len()), (4, 4));
    // Four seeds gave ratios of 0.96 to 1.14 on these few tokens, with a standard deviation of at most 0.05 per cell.
    let ratio = |line: &BTreeMap<String, String>| number(line, "perplexity") / number(line, "original_perplexity");
    assert!(texts.iter().all(|line| (0.85..1.35).contains(&ratio(line)) && line["failure"].is_empty()), "{texts:?}");
    assert!(tasks.iter().all(|line| number(line, "accuracy") == 1.0 && line["text"].ends_with("task.jsonl")));
}

#[test]
fn results_of_other_options_or_texts_are_not_mixed() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let said = succeed(command(&out, &["--dry-run"]));
    assert!(
        said.contains("4 cells, 0 of them finished") && said.contains("gptq, 3 bits, groups of 32, α auto"),
        "{said}"
    );
    assert!(!out.exists());
    let one = ["--methods", "rtn", "--alphas", "off"];
    let sweep = |more: &[&str]| {
        let rest = ["--bits", "3", "--samples", "4", "--seq-len", "64", "--device", "cpu", "--out"];
        let mut command = Command::new(BINARY);
        command.arg("sweep").args(one).args(rest).arg(&out).args(more);
        command
    };
    succeed(sweep(&["--windows", "4"]));
    let first = files(&out.join("cells"));
    let text = scratch.path().join("text.txt");
    fs::write(&text, "A text about something else than the bundled one is about. ".repeat(200)).unwrap();
    let text = text.to_str().unwrap();
    for (more, part) in [
        (vec!["--windows", "3"], "other evaluation text"),
        (vec!["--windows", "4", "--grid", "minmax"], "grid \"hessian\""),
        (vec!["--windows", "4", "--calibration", text], "other calibration text"),
    ] {
        refused(&sweep(&more).output().unwrap(), &["seed0.json", part, "--out", "--force"]);
        assert_eq!(first, files(&out.join("cells")));
    }
    succeed(sweep(&["--windows", "4", "--grid", "minmax", "--force"]));
    assert_eq!(table(&out.join("sweep.csv"))[0]["grid"], "minmax");
    let cell = out.join("cells/rtn-3bit-g32-off-seed0.json");
    let result = fs::read_to_string(&cell).unwrap();
    assert!(result.contains(&kernels()));
    fs::write(&cell, result.replace(&kernels(), "0-other")).unwrap();
    let minmax = ["--windows", "4", "--grid", "minmax"];
    let refusal = ["seed0.json", "revision 0-other of aquatint's kernels", "--out", "--force"];
    refused(&sweep(&minmax).output().unwrap(), &refusal);
    succeed(sweep(&[&minmax[..], &["--force"]].concat()));
    assert!(fs::read_to_string(&cell).unwrap().contains(&kernels()), "--force did not redo the cell");
    fs::write(&cell, "{").unwrap();
    refused(&sweep(&["--windows", "4", "--grid", "minmax"]).output().unwrap(), &["seed0.json", "something else"]);
}

#[test]
fn combinations_that_say_nothing_new_are_left_out() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let more = ["--dry-run", "--seeds", "0,1", "--group-sizes", "32,auto,-1"];
    let output = command(&out, &more).output().unwrap();
    let (said, skipped) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    // Two group sizes, each with rtn without correction once, and three other combinations with two seeds.
    assert!(said.contains("14 cells"), "{said}");
    assert_eq!(skipped.matches("seeds do not matter").count(), 3, "{skipped}");
    assert_eq!(skipped.matches("asked for twice").count(), 7, "{skipped}");
    refused(&command(&out, &["--group-sizes", "48"]).output().unwrap(), &["--group-size", "48"]);
    refused(&command(&out, &["--together", "0"]).output().unwrap(), &["--together"]);
}

#[test]
fn errors_grow_less_with_propagation() {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("growth.csv");
    let growth = |more: &[&str]| {
        let mut command = Command::new(BINARY);
        command
            .args(["error-growth", "--bits", "2", "--samples", "8", "--seq-len", "64", "--device", "cpu"])
            .args(more);
        command
    };
    let said = succeed(growth(&["--blocks", "3", "--csv", path.to_str().unwrap()]));
    assert!(said.contains("ratio"), "{said}");
    let lines = table(&path);
    let quantized: Vec<&str> = lines.iter().map(|line| line["quantized"].as_str()).collect();
    assert_eq!(quantized, ["true", "true", "true", "false", "false", "false", "false", "false"]);
    let ratios: Vec<f64> = lines.iter().map(|line| line["ratio"].parse().unwrap()).collect();
    assert!(ratios.iter().all(|ratio| *ratio > 1.0), "{ratios:?}");
    refused(&growth(&["--blocks", "9"]).output().unwrap(), &["--blocks", "9", "1 to 8"]);
    refused(&growth(&["--blocks", "2", "--alpha", "off"]).output().unwrap(), &["--alpha", "off"]);
}
