//! Runs that are stopped and resumed: they end with the bytes of an uninterrupted run, or are refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aquatint::device::{Device, Recorder};
use aquatint::pipeline::{BlockRecord, Job, Journal, quantize, quantize_together};
use aquatint::quant::{Method, QuantizeOptions};
use aquatint::record::Report;
use aquatint::stored::Replacements;
use aquatint::study::fingerprint::kernels;
use aquatint::{Calibration, Checkpoint, Result, bundled};
use pollster::block_on;
use tempfile::TempDir;

#[cfg(unix)]
use crate::common::running::killed_beyond;
use crate::common::running::{BINARY, Running};
use crate::common::{device_tests, recorder};

/// A journal in memory, of serialized records.
#[derive(Clone, Default)]
struct Memory(Vec<Vec<u8>>);

impl Journal for Memory {
    fn blocks(&self) -> usize {
        self.0.len()
    }

    fn read(&mut self, block: usize) -> Result<BlockRecord> {
        Ok(BlockRecord::from_bytes(&self.0[block]).unwrap())
    }

    fn write(&mut self, record: &BlockRecord) -> Result<()> {
        let bytes = record.to_bytes()?;
        assert_eq!(BlockRecord::from_bytes(&bytes).as_ref(), Ok(record));
        self.0.push(bytes);
        Ok(())
    }
}

fn windows(model: &Checkpoint, options: &QuantizeOptions) -> Vec<Vec<u32>> {
    let tokenizer = block_on(model.tokenizer()).unwrap();
    let text = Calibration::from_texts(&tokenizer, &[bundled::calibration_text()], model.config().vocab_size).unwrap();
    text.draw(options.samples, options.held_out(), options.seq_len, options.sampling, options.seed).unwrap()
}

fn run(
    rec: &mut Recorder,
    model: &Checkpoint,
    options: &QuantizeOptions,
    journal: &mut Memory,
) -> (Report, Replacements) {
    let mut layers = Replacements::new();
    let job = Job { options, output: &mut layers, journal: Some(journal) };
    let windows = windows(model, options);
    let report = block_on(quantize_together(rec, model, &windows, vec![job], &mut ())).unwrap().swap_remove(0).unwrap();
    (report, layers)
}

/// All measured numbers of a report, as text that tells every bit.
fn measured(report: &Report) -> String {
    serde_json::to_string(&(&report.layers, &report.blocks)).unwrap()
}

device_tests!(every_method_goes_on_from_every_block_to_the_same_bytes: cpu, software_gpu);
fn every_method_goes_on_from_every_block_to_the_same_bytes(device: Device) {
    let model = block_on(bundled::checkpoint()).unwrap();
    let gpu = !matches!(device, Device::Cpu);
    for method in [Method::Rtn, Method::Gptq, Method::Awq, Method::Quip] {
        if gpu && matches!(method, Method::Awq | Method::Rtn) {
            // The other two reach all code that these do, and the software adapter is slow.
            continue;
        }
        let samples = if gpu { 2 } else { 4 };
        let mut options = QuantizeOptions { bits: 3, method, samples, seq_len: 32, ..QuantizeOptions::default() };
        (options.descent_passes, options.lm_head) = (1, method == Method::Gptq);
        let mut rec = recorder(&device);
        let mut alone = Replacements::new();
        let windows = windows(&model, &options);
        let report = block_on(quantize(&mut rec, &model, &windows, &options, &mut alone, &mut ())).unwrap();
        let mut journal = Memory::default();
        let (kept_report, kept) = run(&mut rec, &model, &options, &mut journal);
        assert_eq!((&kept, measured(&kept_report)), (&alone, measured(&report)), "{method:?}: records change nothing");
        assert_eq!(journal.blocks(), 8);
        for blocks in if gpu { vec![5] } else { vec![0, 1, 4, 7, 8] } {
            let mut earlier = Memory(journal.0[..blocks].to_vec());
            let (resumed_report, resumed) = run(&mut rec, &model, &options, &mut earlier);
            assert!(resumed == alone, "{method:?} on {}, from block {blocks}", device.name());
            assert_eq!(measured(&resumed_report), measured(&report), "{method:?}, from block {blocks}");
            assert_eq!(earlier.0.len(), 8);
        }
    }
}

#[test]
fn a_damaged_record_is_none() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let options =
        QuantizeOptions { bits: 4, method: Method::Rtn, samples: 2, seq_len: 16, ..QuantizeOptions::default() };
    let mut journal = Memory::default();
    run(&mut recorder(&Device::Cpu), &model, &options, &mut journal);
    let bytes = &journal.0[0];
    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(BlockRecord::from_bytes(&bytes[..length]).is_err(), "the first {length} bytes");
    }
    let foreign =
        safetensors::serialize(std::iter::empty::<(&str, safetensors::tensor::TensorView<'_>)>(), None).unwrap();
    assert!(BlockRecord::from_bytes(&foreign).is_err(), "an empty file of tensors");
}

/// A quick run of the command line, in a folder of its own.
struct Place {
    folder: TempDir,
    options: Vec<&'static str>,
}

impl Place {
    fn new(options: &[&'static str]) -> Self {
        let quick = ["--bits", "3", "--samples", "8", "--seq-len", "64", "--device", "cpu"];
        Self { folder: TempDir::new().unwrap(), options: [&quick, options].concat() }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn kept(&self) -> PathBuf {
        self.folder.path().join(".out.aquatint-resume")
    }

    /// `program`, the one under test, with the arguments of this run.
    fn command(&self, mut program: Command, more: &[&str]) -> Command {
        program.arg("quantize").arg("--out").arg(self.out()).args(&self.options).args(more);
        program
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(Command::new(BINARY), more).output().unwrap()
    }

    /// Kills a run as soon as it says that `blocks` blocks are done. With 0, as soon as it says what it will do.
    fn kill_after(&self, blocks: usize) {
        let mut running = Running::start(self.command(Command::new(BINARY), &[]));
        running.wait_for(&if blocks == 0 { "plan: ".to_string() } else { format!("block {blocks} of 8") });
        running.kill();
    }

    /// Resumes a run that was killed, and checks that it ends with the bytes of `whole`. Returns how many blocks had been kept.
    fn goes_on_to(&self, whole: &Self) -> usize {
        assert!(!self.out().exists(), "an output that is not whole has its final name");
        let resumed = self.run(&["--resume"]);
        let said = String::from_utf8(resumed.stderr).unwrap();
        assert!(resumed.status.success(), "{said}");
        assert!(content(&self.out()) == content(&whole.out()), "{:?}: other bytes than uninterrupted", self.options);
        assert_eq!(names(self.folder.path()), ["out"], "something else stays");
        (0..=8).find(|n| said.contains(&format!("resuming: {n} of 8 blocks"))).unwrap_or_else(|| panic!("{said}"))
    }

    fn refused(&self, more: &[&str], parts: &[&str]) {
        let output = self.run(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let sentence = said.lines().last().unwrap_or_default();
        assert!(sentence.starts_with("aquatint: ") && parts.iter().all(|part| sentence.contains(part)), "{said}");
    }
}

/// The files of a folder by name.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect();
    files.sort();
    files
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn killed_between_blocks_a_run_goes_on_to_the_same_bytes() {
    for options in [["--method", "gptq"], ["--method", "awq"], ["--method", "quip"], ["--format", "float"]] {
        let whole = Place::new(&options);
        assert!(whole.run(&[]).status.success());
        assert_eq!(names(whole.folder.path()), ["out"], "something else stays");
        for blocks in [0, 1, 5] {
            let place = Place::new(&options);
            place.kill_after(blocks);
            // The run goes on until the signal arrives, so it may have kept more.
            let kept = place.goes_on_to(&whole);
            assert!(kept >= blocks, "{options:?}: {kept} blocks, where it had said {blocks}");
        }
    }
}

#[cfg(unix)]
#[test]
fn killed_inside_a_write_a_run_goes_on_to_the_same_bytes() {
    use std::os::unix::process::ExitStatusExt;

    const SIGXFSZ: i32 = 25;
    for options in [["--method", "gptq"], ["--method", "quip"]] {
        let whole = Place::new(&options);
        assert!(whole.run(&[]).status.success());
        let size = fs::metadata(whole.out().join("model.safetensors")).unwrap().len();
        // The limits fall inside the record of the first block, in the middle of the output, and in its last kilobyte.
        for (bytes, expected) in [(1 << 16, 0..=0), (size / 2, 1..=7), (size - 512, 8..=8)] {
            let place = Place::new(&options);
            let output = place.command(killed_beyond(bytes), &[]).output().unwrap();
            assert_eq!(output.status.signal(), Some(SIGXFSZ), "{}", String::from_utf8_lossy(&output.stderr));
            let kept = place.goes_on_to(&whole);
            assert!(expected.contains(&kept), "{options:?}: {kept} blocks, killed beyond {bytes} bytes of {size}");
        }
    }
}

#[test]
fn a_resumed_run_leaves_nothing_else_and_reports_the_whole() {
    let place = Place::new(&[]);
    place.kill_after(3);
    let record = place.folder.path().join("run.json");
    let output = place.run(&["--resume", "--json", record.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!((record["layers"].as_array().unwrap().len(), record["blocks"].as_array().unwrap().len()), (56, 8));
    assert_eq!(names(place.folder.path()), ["out", "run.json"]);
}

/// The bundled model with one number of its first norm changed, in `folder`.
fn changed_model(folder: &Path) -> PathBuf {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama");
    fs::create_dir(folder).unwrap();
    for (name, mut bytes) in content(&bundled) {
        if name == "model.safetensors" {
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let norm = tensors.tensor("model.layers.0.input_layernorm.weight").unwrap().data();
            let place = norm.as_ptr() as usize - bytes.as_ptr() as usize;
            bytes[place] ^= 1;
        }
        fs::write(folder.join(name), bytes).unwrap();
    }
    folder.to_owned()
}

#[test]
fn only_the_same_run_goes_on() {
    let place = Place::new(&[]);
    place.kill_after(2);
    let before = content(&place.kept());
    place.refused(&[], &["finished blocks of this very run", "--resume", "--force"]);
    place.refused(&["--resume", "--grid", "mse"], &["--resume", "grid \"hessian\"", "ask for the same"]);
    place.refused(&["--resume", "--alpha", "0.25"], &["--resume", "alpha"]);
    let text = place.folder.path().join("other.txt");
    fs::write(&text, "Another text, as long as it takes. ".repeat(2000)).unwrap();
    place.refused(&["--resume", "--calibration", text.to_str().unwrap()], &["--resume", "other calibration text"]);
    let model = changed_model(&place.folder.path().join("model"));
    place.refused(&["--resume", model.to_str().unwrap()], &["--resume", "another model"]);
    let run = place.kept().join("run.json");
    let description = fs::read_to_string(&run).unwrap();
    let version = format!("\"aquatint\": \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(description.contains(&version));
    fs::write(&run, description.replace(&version, "\"aquatint\": \"0.0.1\"")).unwrap();
    place.refused(&["--resume"], &["--resume", "version 0.0.1 of aquatint"]);
    let kernels = kernels();
    for (recorded, found) in [("\"0-other\"", "revision 0-other"), ("\"\"", "an earlier revision")] {
        fs::write(&run, description.replace(&format!("\"{kernels}\""), recorded)).unwrap();
        let found = format!("--resume: found a run made with {found} of aquatint's kernels");
        let expected = format!("expected revision {kernels}, which this program has");
        place.refused(&["--resume"], &[&found, &expected, "the program that began it", "--force"]);
    }
    fs::write(&run, "{").unwrap();
    place.refused(&["--resume"], &["--resume", "something unknown"]);
    fs::write(&run, &description).unwrap();
    assert!(content(&place.kept()) == before, "what was refused has changed nothing");
    let block = place.kept().join("block-00001.safetensors");
    let bytes = fs::read(&block).unwrap();
    fs::write(&block, &bytes[..bytes.len() / 2]).unwrap();
    place.refused(&["--resume"], &["block-00001.safetensors", "the record of block 1"]);
    assert!(place.run(&["--force"]).status.success(), "--force starts again");
    assert_eq!(names(place.folder.path()), ["model", "other.txt", "out"]);
}

#[test]
fn other_options_start_anew_over_what_was_stopped() {
    let place = Place::new(&[]);
    place.kill_after(1);
    assert!(place.run(&["--method", "rtn", "--alpha", "off"]).status.success());
    assert_eq!(names(place.folder.path()), ["out"]);
}

#[test]
fn with_nothing_to_resume_a_run_starts_at_the_beginning() {
    let place = Place::new(&["--method", "rtn"]);
    let output = place.run(&["--resume"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("resuming: 0 of 8 blocks are done"));
}

#[test]
fn one_output_takes_one_run_at_a_time() {
    let place = Place::new(&[]);
    fs::create_dir(place.kept()).unwrap();
    let lock = fs::File::create(place.kept().join("lock")).unwrap();
    fs4::FileExt::try_lock(&lock).unwrap();
    place.refused(&[], &["another run that writes there", "wait for it"]);
}
