//! The command line as a user meets it: the files it writes, the sentences it prints, and that bad input leaves no files behind.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aquatint::device::Device;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::device_tests;
use crate::common::running::{BINARY, Running, interruptible};
use crate::small_model::{Model, Stored};

/// The options of a quick run.
const QUICK: [&str; 8] = ["--bits", "3", "--samples", "8", "--seq-len", "128", "--device", "cpu"];

fn aquatint(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = aquatint(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that the program ends with exit code 2 and one sentence, which contains all `parts`.
fn refuse(arguments: &[&str], parts: &[&str]) {
    let output = aquatint(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    let sentences: Vec<&str> = stderr.lines().filter(|line| line.starts_with("aquatint: ")).collect();
    assert_eq!(sentences.len(), 1, "{arguments:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().last(), sentences.last().copied(), "something follows: {stderr}");
    for part in parts {
        assert!(sentences[0].contains(part), "no '{part}' in: {}", sentences[0]);
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_pages_of_families_say_what_the_program_says() {
    let printed = succeed(&["families"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/families.md")).unwrap();
    assert_eq!(page, printed, "write it anew: aquatint families > docs/families.md");
    let line = printed.lines().find(|line| line.starts_with("Families: ")).unwrap();
    assert!(fs::read_to_string(root.join("README.md")).unwrap().contains(line), "README.md lacks: {line}");
}

/// The directory of the bundled model.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama")
}

/// The perplexity of the checkpoint in `folder` on eight windows of the bundled text. `scratch` takes the record.
fn perplexity(folder: &Path, scratch: &Path) -> f64 {
    let record = scratch.join("evaluation.json");
    let arguments = ["eval", text(folder), "--seq-len", "128", "--windows", "8", "--device", "cpu"];
    succeed(&[&arguments[..], &["--json", text(&record)]].concat());
    json(&record)["perplexity"].as_f64().unwrap()
}

#[test]
fn both_formats_are_written_whole_and_read_back() {
    let scratch = TempDir::new().unwrap();
    let mut perplexities = Vec::new();
    for format in ["gptq", "float"] {
        let (out, record) = (scratch.path().join(format), scratch.path().join(format!("{format}.json")));
        let arguments = ["quantize", "--out", text(&out), "--format", format, "--json", text(&record)];
        let said = succeed(&[&arguments[..], &QUICK].concat());
        assert!(said.contains("quantized 56 layers"), "{said}");
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            assert!(out.join(file).is_file(), "{format} has no {file}");
        }
        let config = json(&out.join("config.json"));
        if format == "gptq" {
            assert_eq!(config["quantization_config"], json(&out.join("quantize_config.json")));
            assert_eq!(config["quantization_config"]["bits"], 3);
            assert_eq!(config["quantization_config"]["group_size"], 32, "the largest that divides 160 and 416");
            assert_eq!(config["quantization_config"]["sym"], false, "asymmetric by default at 3 bits");
            assert_eq!(config["quantization_config"]["checkpoint_format"], "gptq_v2");
        } else {
            assert!(config.get("quantization_config").is_none());
        }
        let report = json(&record);
        assert_eq!(report["layers"].as_array().unwrap().len(), 56);
        assert_eq!(report["blocks"].as_array().unwrap().len(), 8);
        assert_eq!(report["options"]["seed"], 0);
        let corrected = report["layers"].as_array().unwrap().iter().filter(|l| l["alpha"].as_f64().unwrap() > 0.0);
        assert!(corrected.count() > 28, "most layers are corrected");
        perplexities.push(perplexity(&out, scratch.path()));
        let said = succeed(&["generate", text(&out), "--prompt", "The city", "--tokens", "8", "--device", "cpu"]);
        assert!(said.len() > 8, "{said}");
    }
    // Both formats hold the same codes. `float` rounds s·(q − z) once more, to f16.
    assert!((perplexities[0] / perplexities[1] - 1.0).abs() < 1e-3, "{perplexities:?}");
    // Five seeds gave ratios of 1.02 to 1.07, with a standard deviation of 0.02.
    let ratio = perplexities[0] / perplexity(&fixture(), scratch.path());
    assert!((0.96..1.13).contains(&ratio), "{perplexities:?}, {ratio} of what it was");
}

#[test]
fn other_clients_get_what_they_load() {
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("model.gguf");
    let quick = ["--samples", "8", "--seq-len", "128", "--device", "cpu"];
    succeed(&[&["quantize", "--out", text(&file), "--type", "Q4_1"], &quick[..]].concat());
    let directory = scratch.path().join("mlx");
    let options = ["--format", "mlx", "--bits", "4", "--group-size", "32"];
    succeed(&[&["quantize", "--out", text(&directory)], &options[..], &quick].concat());
    assert_eq!(names(scratch.path()), ["mlx", "model.gguf"]);
    let original = perplexity(&fixture(), scratch.path());
    for output in [&file, &directory] {
        let change = perplexity(output, scratch.path()) / original;
        assert!((0.98..1.03).contains(&change), "{change} for {}", output.display());
    }
    let continued = ["generate", text(&file), "--prompt", "The city of", "--tokens", "4", "--device", "cpu"];
    assert!(!succeed(&continued).trim().is_empty());
    // The name of the output and the format must agree, and a type by name is a matter of GGUF files.
    let other = scratch.path().join("other.gguf");
    refuse(&["quantize", "--out", text(&other), "--format", "mlx"], &["--out", "a directory for this format"]);
    refuse(&["quantize", "--out", text(&directory), "--format", "gguf"], &["--out", "a name that ends in .gguf"]);
    refuse(&["quantize", "--out", "nowhere", "--type", "Q4_0"], &["--type", "a GGUF file"]);
    refuse(&["quantize", "--out", text(&other), "--type", "Q9"], &["--type", "Q9", "Q4_K_M"]);
    refuse(&["quantize", "--out", text(&other), "--bits", "2"], &["--bits", "4 or 8 for a GGUF file"]);
    refuse(&["quantize", "--out", text(&file)], &["model.gguf", "--force"]);
    assert!(!other.exists());
}

#[test]
fn an_existing_directory_is_left_alone_unless_forced() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "keep").unwrap();
    let arguments = [&["quantize", "--out", text(&out)][..], &QUICK].concat();
    refuse(&arguments, &["out", "files in it", "--force"]);
    assert_eq!(names(&out), ["mine"]);
    succeed(&[&arguments[..], &["--force"]].concat());
    assert!(out.join("model.safetensors").is_file() && !out.join("mine").exists());
    assert_eq!(names(scratch.path()), ["out"]);
}

#[test]
fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let said = succeed(&[&["quantize", "--out", text(&out), "--dry-run"][..], &QUICK].concat());
    assert!(said.contains("3 bits") && said.contains("groups of 32"), "{said}");
    assert!(names(scratch.path()).is_empty());
}

#[test]
fn a_dry_run_tells_where_awq_scales_nothing() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let output = aquatint(&[&["quantize", "--out", text(&out), "--dry-run", "--method", "awq"][..], &QUICK].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("note: AWQ scales no input of 8 layers (self_attn.o_proj), because").count(), 1, "{said}");
}

#[test]
fn a_dry_run_lists_the_tensors_that_the_model_does_not_use() {
    let scratch = TempDir::new().unwrap();
    let (model, out) = (scratch.path().join("model"), scratch.path().join("out"));
    let mut small = Model::new(|config| config["vocab_size"] = 1024.into());
    for name in ["model.visual.a", "model.visual.b", "mtp.fc.weight"] {
        small.tensors.push(Stored::f32(name, &[2], &[1.0; 2]));
    }
    small.tensors.push(Stored::f32("model.layers.0.mlp.up_proj.bias", &[64], &[0.0; 64]));
    small.save(&model);
    fs::copy(fixture().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let quick = ["--samples", "2", "--seq-len", "32", "--device", "cpu", "--dry-run"];
    let said = succeed(&[&["quantize", text(&model), "--out", text(&out)][..], &quick].concat());
    let copied = "copied unchanged: 1 tensor of the MTP head (8 B), 2 of the vision tower (16 B)\n";
    assert!(said.contains(copied) && said.contains("left out: 1 tensor of the biases of zeros (256 B)\n"), "{said}");
    assert!(!said.contains("source: "), "{said}");
}

#[test]
fn memory_is_planned_and_kept_to() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let base = ["quantize", "--out", text(&out), "--device", "cpu", "--method", "rtn"];
    let quick = ["--seq-len", "128", "--samples"];
    let planned = |more: &[&str]| succeed(&[&base[..], &quick, more, &["--dry-run"]].concat());
    assert!(!planned(&["256"]).contains("in a file"));
    assert!(planned(&["256", "--memory", "200MB"]).contains("hidden states in a file"));
    refuse(&[&base[..], &quick, &["8", "--memory", "50MB"]].concat(), &["--memory", "50 MB", "at least"]);
    let nowhere = scratch.path().join("nowhere");
    refuse(&[&base[..], &quick, &["8", "--scratch", text(&nowhere)]].concat(), &["--scratch", "nowhere"]);
    assert!(names(scratch.path()).is_empty());
    let said = succeed(&[&base[..], &quick, &["128", "--memory", "140MB"]].concat());
    assert!(said.contains("hidden states in a file; at most"), "{said}");
    assert_eq!(names(scratch.path()), ["out"]);
}

#[test]
fn a_model_agrees_with_itself() {
    let model = fixture();
    let arguments = ["eval", text(&model), "--seq-len", "64", "--windows", "4", "--device", "cpu", "--against"];
    let said = succeed(&[&arguments[..], &[text(&model)]].concat());
    let number = |before: &str| -> f64 {
        let rest = said.split_once(before).unwrap_or_else(|| panic!("no '{before}' in {said}")).1;
        rest.split_whitespace().next().unwrap().trim_end_matches(',').parse().unwrap()
    };
    assert!(number("KL ").abs() < 1e-5, "{said}");
    assert_eq!(number("top-1 agreement "), 100.0);
}

#[test]
fn a_text_is_continued_from_an_option_or_standard_input() {
    let options = ["--tokens", "24", "--device", "cpu"];
    let output = aquatint(&[&["generate", "--prompt", "The city of Paris is"][..], &options].concat());
    let (said, summary) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{summary}");
    assert!(said.starts_with(" the ") && said.ends_with('\n'), "{said}");
    assert!(summary.contains("24 tokens in ") && summary.contains("tokens/s; stopped: token limit"), "{summary}");
    let mut child = Command::new(BINARY)
        .args([&["generate", "--prompt", "-"][..], &options].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"The city of Paris is\n").unwrap();
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), said);
}

#[test]
fn a_text_that_cannot_be_continued() {
    let base = ["generate", "--device", "cpu", "--prompt", "The city of Paris is"];
    for (more, parts) in [
        (["--temperature", "-1"], ["--temperature", "-1"]),
        (["--temperature", "nan"], ["--temperature", "NaN"]),
        (["--tokens", "0"], ["--tokens", "0"]),
        (["--context", "0"], ["--context", "0"]),
        (["--context", "8"], ["--prompt", "8 tokens"]),
    ] {
        refuse(&[&base[..], &more].concat(), &parts);
    }
    let long = "word ".repeat(600);
    refuse(&["generate", "--device", "cpu", "--prompt", &long], &["--prompt", "512"]);
}

#[test]
fn devices_are_listed_and_a_wrong_one_is_named() {
    assert!(succeed(&["devices"]).contains("auto takes"));
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    refuse(&["quantize", "--out", text(&out), "--device", "no such card"], &["--device", "no such card", "cpu"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_only_what_it_can_go_on_from() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let mut command = interruptible();
    command.args(["quantize", "--out", text(&out), "--samples", "64", "--seq-len", "512", "--device", "cpu"]);
    let mut running = Running::start(command);
    running.wait_for("block 1 of");
    let (status, rest) = running.interrupt();
    assert_eq!(status.code(), Some(130), "{rest}");
    assert!(rest.contains("cancelled") && rest.contains("of 8 blocks are kept") && rest.contains("--resume"), "{rest}");
    assert_eq!(names(scratch.path()), [".out.aquatint-resume"]);
}

/// A copy of the bundled model that a test damages.
struct Broken {
    scratch: TempDir,
    model: PathBuf,
}

impl Broken {
    fn new() -> Self {
        let scratch = TempDir::new().unwrap();
        let model = scratch.path().join("model");
        fs::create_dir(&model).unwrap();
        for name in names(&fixture()) {
            fs::copy(fixture().join(&name), model.join(&name)).unwrap();
        }
        Self { scratch, model }
    }

    fn edit(&self, file: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) {
        let path = self.model.join(file);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
    }

    fn replace(&self, from: &str, to: &str) {
        self.edit("config.json", |bytes| String::from_utf8(bytes).unwrap().replace(from, to).into());
    }

    /// Checks that quantizing the copy is refused with a sentence that contains all `parts`, and leaves no files behind.
    fn refused(&self, more: &[&str], parts: &[&str]) {
        let out = self.scratch.path().join("out");
        refuse(&[&["quantize", text(&self.model), "--out", text(&out)][..], &QUICK, more].concat(), parts);
        let left: Vec<String> = names(self.scratch.path()).into_iter().filter(|name| name != "text.txt").collect();
        assert_eq!(left, ["model"], "something was left behind");
    }
}

#[test]
fn unknown_keys_of_the_configuration_are_noted_once() {
    let broken = Broken::new();
    broken.edit("config.json", |bytes| [b"{\"wings\": 2, \"claws\": [1], ", &bytes[1..]].concat());
    let out = broken.scratch.path().join("noted");
    let words = fixture().join("evaluation.txt");
    let arguments = ["quantize", text(&broken.model), "--out", text(&out), "--evaluate", text(&words)];
    let output = aquatint(&[&arguments[..], &["--evaluate-windows", "2"], &QUICK].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let notes: Vec<&str> = stderr.lines().filter(|line| line.starts_with("note: ")).collect();
    let expected = format!(
        "note: aquatint does not know these keys of {}/config.json and ignores them: wings, claws",
        broken.model.display()
    );
    assert_eq!(notes.iter().filter(|note| **note == expected).count(), 1, "{notes:?}");
    assert_eq!(json(&out.join("config.json"))["wings"], 2);
}

#[test]
fn a_missing_or_malformed_config() {
    let broken = Broken::new();
    broken.edit("config.json", |_| b"{ not json".to_vec());
    broken.refused(&[], &["config.json"]);
    fs::remove_file(broken.model.join("config.json")).unwrap();
    broken.refused(&[], &["config.json"]);
    fs::remove_dir_all(&broken.model).unwrap();
    let out = broken.scratch.path().join("out");
    refuse(&["quantize", text(&broken.model), "--out", text(&out)], &["model"]);
}

#[test]
fn an_unknown_architecture_names_the_known_ones() {
    let broken = Broken::new();
    broken.replace("LlamaForCausalLM", "MambaForCausalLM");
    broken.replace("\"llama\"", "\"mamba\"");
    broken.refused(&[], &["config.json", "Mamba", "Llama", "Mistral", "Qwen2", "Qwen3"]);
}

#[test]
fn shapes_that_do_not_match_the_config() {
    let broken = Broken::new();
    broken.replace("\"intermediate_size\": 416", "\"intermediate_size\": 448");
    broken.refused(&[], &["proj", "416", "448"]);
}

#[test]
fn a_truncated_and_a_lying_weight_file() {
    let broken = Broken::new();
    broken.edit("model.safetensors", |bytes| bytes[..bytes.len() - 1000].to_vec());
    broken.refused(&[], &["model.safetensors"]);
    broken.edit("model.safetensors", |mut bytes| {
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        bytes
    });
    broken.refused(&[], &["model.safetensors"]);
}

#[test]
fn a_weight_that_is_not_a_number() {
    let broken = Broken::new();
    // The last two bytes of the file are the last element of its last tensor. 0x7fc0 is a NaN in bf16.
    broken.edit("model.safetensors", |mut bytes| {
        let at = bytes.len() - 2;
        bytes[at..].copy_from_slice(&0x7fc0u16.to_le_bytes());
        bytes
    });
    broken.refused(&[], &["model.safetensors", "NaN"]);
}

#[test]
fn calibration_text_that_is_missing_empty_or_short() {
    let broken = Broken::new();
    let path = broken.scratch.path().join("text.txt");
    broken.refused(&["--calibration", text(&path)], &["text.txt"]);
    fs::write(&path, " \n").unwrap();
    broken.refused(&["--calibration", text(&path)], &["text.txt", "no text"]);
    fs::write(&path, "A short text.").unwrap();
    broken.refused(&["--calibration", text(&path)], &["text.txt", "tokens", "--samples"]);
}

#[test]
fn options_that_cannot_be_met() {
    let broken = Broken::new();
    broken.refused(&["--group-size", "48"], &["48", "160"]);
    let out = broken.scratch.path().join("out");
    let base = ["quantize", text(&broken.model), "--out", text(&out), "--device", "cpu"];
    for (more, part) in [
        (["--bits", "5"], "--bits"),
        (["--correction-damping", "0"], "--correction-damping"),
        (["--alpha-shrinkage", "2"], "--alpha-shrinkage"),
        (["--samples", "1"], "--samples"),
        (["--seq-len", "4096"], "--seq-len"),
    ] {
        refuse(&[&base[..], &more].concat(), &[part]);
    }
    let inside = broken.model.join("out");
    refuse(&["quantize", text(&broken.model), "--out", text(&inside)], &["model"]);
    assert_eq!(names(broken.scratch.path()), ["model"]);
}

#[test]
fn a_reader_who_goes_away_breaks_nothing() {
    let scratch = TempDir::new().unwrap();
    let out = scratch.path().join("out");
    let mut command = Command::new(BINARY);
    command.args(["quantize", "--out", text(&out), "--method", "rtn", "--alpha", "off"]).args(QUICK);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
    assert!(out.join("model.safetensors").is_file());
}

#[test]
fn blocks_of_random_weights_are_timed_and_a_dry_run_counts_the_work() {
    let scratch = TempDir::new().unwrap();
    let (config, record) = (scratch.path().join("config.json"), scratch.path().join("record.json"));
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-llama/config.json"), &config).unwrap();
    let quick = ["--samples", "2", "--seq-len", "32", "--bits", "3", "--device", "cpu"];
    let arguments = ["bench-model", "--shape", text(&config), "--blocks", "2", "--json", text(&record)];
    let trace = scratch.path().join("trace.json");
    let said = succeed(&[&arguments[..], &["--profile", text(&trace)], &quick].concat());
    assert!(said.contains("all 8 blocks at this pace"), "{said}");
    assert!(
        json(&trace)["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == "round: block 2, down")
    );
    let record = json(&record);
    let seconds = record["total_seconds"].as_f64().unwrap();
    assert!((record["extrapolated_seconds"].as_f64().unwrap() / seconds - 4.0).abs() < 1e-9);
    // The linears take 4·T·Σm·n operations, causal attention half of 8·T²·width.
    let (tokens, weights) = (64.0, 2.0 * (2.0 * 160.0 * (160.0 + 32.0) + 3.0 * 160.0 * 416.0));
    let forward = 4.0 * tokens * weights + 2.0 * 4.0 * tokens * 160.0 * 32.0;
    let counted = record["work"]["forward"].as_f64().unwrap();
    assert!((counted / forward - 1.0).abs() < 1e-9, "{counted} operations, expected {forward}");
    refuse(&["bench-model", "--shape", text(&config), "--blocks", "9"], &["--blocks", "found 9", "1 to 8"]);
    refuse(&["bench-model", "--shape", "llama-9"], &["llama-9", "llama-2-7b"]);
    let out = scratch.path().join("out");
    let said = succeed(&[&["quantize", "--out", text(&out), "--dry-run"][..], &quick].concat());
    assert!(said.contains("work: statistics ") && said.contains("time: at least ") && !out.exists(), "{said}");
    assert!(said.contains("time: about ") && said.contains(" random blocks ") && said.contains("64 tokens"), "{said}");
}

device_tests!(a_profile_names_kernels_and_phases_and_changes_nothing: cpu, software_gpu);
fn a_profile_names_kernels_and_phases_and_changes_nothing(device: Device) {
    let scratch = TempDir::new().unwrap();
    let trace = scratch.path().join("trace.json");
    let gpu = !matches!(device, Device::Cpu);
    let device = device.name();
    let run = |name: &str, more: &[&str]| {
        let out = scratch.path().join(name);
        let quick = ["--method", "rtn", "--alpha", "0.5", "--samples", "2", "--seq-len", "16", "--force"];
        succeed(&[&["quantize", "--out", text(&out), "--device", &device], &quick[..], more].concat());
        fs::read(out.join("model.safetensors")).unwrap()
    };
    let plain = run("plain", &[]);
    assert!(run("profiled", &["--profile", text(&trace)]) == plain, "{device}: other bytes with a profile");
    let trace = json(&trace);
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |track: u64, name: &str| {
        let fits = |event: &&Value| event["tid"] == track && event["name"].as_str().unwrap().starts_with(name);
        events.iter().filter(|event| event["ph"] == "X").filter(fits).count()
    };
    assert!(named(1, "forward: block 8") == 4 && named(1, "statistics") == 32, "{device}: {events:?}");
    let expected = usize::from(gpu);
    assert!(named(2, "gram") >= 32 * expected && named(2, "") >= 500 * expected, "{device}");
    assert_eq!(named(2, "") > 0, gpu);
    assert!(events.iter().filter(|event| event["ph"] == "X").all(|event| event["dur"].as_f64().unwrap() >= 0.0));
}
