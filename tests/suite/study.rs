//! Forecasts, sweeps and second attempts by the library alone, as the page would call them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use aquatint::device::{Device, Memory, Place, Recorder};
use aquatint::observer::{Event, Observer};
use aquatint::quant::{Alpha, GroupSize, Method, QuantizeOptions};
use aquatint::study::evaluation::EvaluationText;
use aquatint::study::forecast::Forecast;
use aquatint::study::retry::with_less_memory;
use aquatint::study::sweep::{Axes, ForeignResult, Grid, Store, Sweep, SweepEvent, SweepObserver, SweepSetup};
use aquatint::{Calibration, Checkpoint, Error, Result, Sampling, bundled};
use pollster::block_on;

/// Notes what happens.
struct Notes {
    started: Instant,
    notes: Vec<String>,
}

impl Notes {
    fn new() -> Self {
        Self { started: Instant::now(), notes: Vec::new() }
    }
}

impl Observer for Notes {
    fn event(&mut self, event: &Event) {
        if let Event::Retry { reason, chunk_tokens, streams } = event {
            self.notes.push(format!("{reason}; {chunk_tokens} tokens, {streams:?}"));
        }
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn cancelled(&self) -> bool {
        false
    }
}

impl SweepObserver for Notes {
    fn sweep_event(&mut self, event: &SweepEvent<'_>) {
        self.notes.push(match event {
            SweepEvent::Original => "original".to_string(),
            SweepEvent::Cell(cell) => cell.label.clone(),
            SweepEvent::Perplexity(_, measured) => measured.text.clone(),
            SweepEvent::Accuracy(_, measured) => measured.task.clone(),
        });
    }

    fn sentence(&self, error: &Error) -> String {
        error.to_string()
    }
}

#[test]
fn every_family_has_a_trial_of_its_own_kind() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    for family in ["llama", "llama-linear", "llama-scaled", "mistral", "qwen2", "qwen3"] {
        let model = block_on(Checkpoint::open(&families.join(family))).unwrap();
        let options = QuantizeOptions { samples: 2, seq_len: 16, ..QuantizeOptions::default() };
        let mut rec = Recorder::new(&Device::Cpu);
        let forecast = block_on(Forecast::new(&mut rec, &model, &options, &Notes::new())).unwrap();
        let trial = forecast.extrapolation.unwrap_or_else(|| panic!("{family} has no trial"));
        assert_eq!((trial.blocks, trial.tokens), (2, 32), "{family}");
        assert_eq!(trial.hidden, model.config().hidden_size, "{family}: so little work needs no narrower model");
        assert!(trial.seconds > 0.0 && forecast.least_seconds() > 0.0, "{family}");
    }
}

#[test]
fn without_a_clock_nothing_is_extrapolated() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let options = QuantizeOptions { samples: 2, seq_len: 16, ..QuantizeOptions::default() };
    let forecast = block_on(Forecast::new(&mut Recorder::new(&Device::Cpu), &model, &options, &())).unwrap();
    assert_eq!((forecast.extrapolation, forecast.least_seconds()), (None, 0.0));
    assert!(forecast.operations() > 0.0);
}

#[test]
fn a_run_out_of_memory_begins_again_with_less() {
    let mut notes = Notes::new();
    let refusal = || Error::OutOfMemory { device: "a card".to_string(), bytes: 7, what: "H".to_string() };
    let mut attempts = Vec::new();
    let attempt = async |rec: &mut Recorder, _: &mut dyn Observer| -> Result<usize> {
        attempts.push((rec.memory().chunk_tokens, rec.memory().streams));
        if attempts.len() < 3 { Err(refusal()) } else { Ok(attempts.len()) }
    };
    let memory = Memory { chunk_tokens: 64, ..Memory::default() };
    let done = with_less_memory(&Device::Cpu, memory.clone(), 16, &mut notes, attempt);
    assert_eq!(block_on(done).unwrap(), 3);
    assert_eq!(attempts, [(64, Place::Device), (32, Place::File), (16, Place::File)]);
    assert_eq!(notes.notes.len(), 2);
    assert!(
        notes.notes[0].contains("7 bytes for H") && notes.notes[0].ends_with("32 tokens, File"),
        "{:?}",
        notes.notes
    );
    let never = async |_: &mut Recorder, _: &mut dyn Observer| -> Result<()> { Err(refusal()) };
    let last = block_on(with_less_memory(&Device::Cpu, memory, 16, &mut notes, never));
    assert!(matches!(last, Err(Error::OutOfMemory { .. })), "it ends when nothing is left to give up");
}

/// Results in memory.
#[derive(Default)]
struct InMemory(BTreeMap<String, Vec<u8>>);

impl Store for InMemory {
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(name).cloned())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.0.insert(name.to_string(), bytes.to_vec());
        Ok(())
    }

    fn place(&self, name: &str) -> String {
        name.to_string()
    }
}

#[test]
fn a_sweep_needs_neither_a_directory_nor_a_terminal() {
    let model = block_on(bundled::checkpoint()).unwrap();
    let tokenizer = block_on(model.tokenizer()).unwrap();
    let tokens = |file| Calibration::from_texts(&tokenizer, &[file], model.config().vocab_size).unwrap();
    let calibration = tokens(bundled::calibration_text());
    let windows = tokens(bundled::evaluation_text()).windows(2, 32, Sampling::Sequential, 0).unwrap();
    let axes = Axes {
        methods: vec![Method::Rtn],
        bits: vec![4, 3],
        group_sizes: vec![GroupSize::Auto],
        alphas: vec![Alpha::Off],
        seeds: vec![0, 1],
    };
    let options = |variant: &aquatint::study::sweep::Variant| {
        let mut options = QuantizeOptions { method: variant.method, bits: variant.bits, ..QuantizeOptions::default() };
        (options.samples, options.seq_len, options.seed) = (2, 32, variant.seed);
        options.alpha.default = variant.alpha;
        options
    };
    let mut store = InMemory::default();
    let mut sweep_once = |foreign| {
        let grid = block_on(Grid::new(&model, &axes, options)).unwrap();
        assert_eq!((grid.cells.len(), grid.skipped.len()), (2, 2));
        let texts = vec![EvaluationText { name: "a text".to_string(), windows: windows.clone() }];
        let setup = SweepSetup { model: &model, calibration: &calibration, texts, tasks: Vec::new(), foreign };
        let mut notes = Notes::new();
        let mut sweep = block_on(Sweep::new(Recorder::new(&Device::Cpu), setup, &mut store)).unwrap();
        let entries = sweep.entries(grid.cells).unwrap();
        let (original, rows) = block_on(sweep.finish(entries, 2, &mut notes)).unwrap();
        assert_eq!((original.texts.len(), rows.len()), (1, 2));
        assert!(rows.iter().all(|row| row.finished.failure.is_none() && row.finished.run.is_some()));
        (notes.notes.len(), serde_json::to_string(&rows.iter().map(|row| &row.finished).collect::<Vec<_>>()).unwrap())
    };
    // The original, two cells, and two perplexities; then nothing, to the same results.
    let (events, first) = sweep_once(ForeignResult::Refuse);
    assert_eq!(events, 5);
    let (events, second) = sweep_once(ForeignResult::Refuse);
    assert_eq!((events, second), (0, first));
    assert_eq!(
        store.0.keys().collect::<Vec<_>>(),
        ["cells/rtn-3bit-g32-off-seed0", "cells/rtn-4bit-g32-off-seed0", "original"]
    );
}
