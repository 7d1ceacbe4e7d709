//! A run of the page. It quantizes the model into the private file system, quantizes it again without correction if the page asks
//! for the comparison, and measures the perplexity of each model. [`crate::session`] calls it.

use aquatint::checkpoint::Checkpoint;
use aquatint::device::Recorder;
use aquatint::engine::network::Network;
use aquatint::eval::evaluate;
use aquatint::pipeline;
use aquatint::quant::{Alpha, QuantizeOptions};
use aquatint::record::Report;
use aquatint::study::checkpoint_run::{CheckpointRun, calibration_windows};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::files::{JsStorage, create_folder, listing, open_checkpoint, remove_folder, written_files};
use crate::options::PageOptions;
use crate::progress::{Progress, Step, seconds};
use crate::summary::{FileSize, file_sizes};
use crate::text::{TextArgs, Texts};

/// The folder of the quantized model.
pub const QUANTIZED: &str = "quantized";
/// The folder of the model without correction. It is removed at the end of the run.
const UNCORRECTED: &str = "uncorrected";

/// The page's request for a run.
#[derive(Deserialize)]
pub struct Request {
    options: PageOptions,
    calibration: TextArgs,
    compare: bool,
}

/// The answer to a [`Request`].
#[derive(Serialize)]
pub struct Outcome {
    perplexity: Perplexity,
    bytes: Bytes,
    seconds: f64,
    blocks: Curves,
    layers: Vec<Layer>,
    memory: Memory,
    files: Vec<FileSize>,
    /// The report as JSON text, for the user to save.
    report: String,
}

#[derive(Serialize, Clone, Copy)]
struct Perplexity {
    original: f64,
    quantized: f64,
    plain: Option<f64>,
    tokens: usize,
}

#[derive(Serialize, Clone, Copy)]
struct Bytes {
    before: u64,
    after: u64,
}

#[derive(Serialize)]
struct Curves {
    qep: Vec<f64>,
    plain: Option<Vec<f64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    name: String,
    alpha: f64,
    alpha_optimal: Option<f64>,
    guarded: bool,
    error_fitted: f64,
    error_held_out: Option<f64>,
    error_uncorrected: Option<f64>,
}

#[derive(Serialize, Clone, Copy)]
#[serde(rename_all = "camelCase")]
struct Memory {
    wasm_peak: u64,
    device_estimate: u64,
}

/// The report file that the page offers to save: the library's report with the page's own measurements.
#[derive(Serialize)]
struct SavedReport<'a> {
    #[serde(flatten)]
    report: &'a Report,
    model: &'a str,
    perplexity: Perplexity,
    bytes: Bytes,
    memory: Memory,
    /// The report of the run without correction.
    #[serde(skip_serializing_if = "Option::is_none")]
    uncorrected: Option<&'a Report>,
}

/// The device, model, storage and observer of a run.
pub struct Place<'a> {
    /// The recorder of the GPU's work.
    pub rec: &'a mut Recorder,
    /// The original model.
    pub model: &'a Checkpoint,
    /// The storage for the results.
    pub storage: &'a JsStorage,
    /// The observer.
    pub progress: &'a mut Progress,
}

/// Returns the steps of a run and their work. The unit is the time to evaluate one token; the factors for quantized tokens were
/// measured with the bundled model. `tokens`: calibration tokens. `measured`: evaluation tokens.
pub fn steps(request: &Request, tokens: usize, measured: usize) -> Vec<Step> {
    let step = |name, series, work: f64| Step { name, series, work };
    let measure = measured as f64;
    let mut steps = vec![step("quantize", Some("qep"), 6.0 * tokens as f64)];
    if request.compare {
        steps.push(step("compare", Some("plain"), 4.0 * tokens as f64));
    }
    steps.extend([step("evaluate-original", None, measure), step("evaluate-quantized", None, measure)]);
    if request.compare {
        steps.push(step("evaluate-compare", None, measure));
    }
    steps
}

impl Request {
    /// Returns the library's options for `model`. Errors: as [`PageOptions::resolve`].
    pub fn options(&self, model: &Checkpoint) -> aquatint::Result<QuantizeOptions> {
        self.options.resolve(model)
    }

    /// Takes the calibration text out of the request and tokenizes it. Errors: a text without tokens, or an unusable tokenizer.
    pub async fn texts(&mut self, model: &Checkpoint) -> aquatint::Result<Texts> {
        std::mem::take(&mut self.calibration).tokenize(model).await
    }
}

impl Place<'_> {
    /// Runs all steps. If one fails, the folders of the run are removed.
    pub async fn run(&mut self, request: &Request, texts: &Texts) -> Result<Outcome, Failure> {
        let outcome = self.try_run(request, texts).await;
        let _ = remove_folder(self.storage, UNCORRECTED).await;
        if outcome.is_err() {
            // The error of the run is reported, not an error of the clean-up.
            let _ = remove_folder(self.storage, QUANTIZED).await;
        }
        Ok(outcome?)
    }

    async fn try_run(&mut self, request: &Request, texts: &Texts) -> aquatint::Result<Outcome> {
        let since = seconds();
        let options = request.options(self.model)?;
        let measured = texts.measured(options.seq_len)?;
        self.progress.begin("quantize");
        let report = self.quantize(&options, texts, QUANTIZED).await?;
        let mut uncorrected = None;
        if request.compare {
            self.progress.begin("compare");
            let mut plain = options.clone();
            plain.alpha.default = Alpha::Off;
            uncorrected = Some(self.quantize(&plain, texts, UNCORRECTED).await?);
        }
        self.progress.begin("evaluate-original");
        let (original, tokens) = evaluate_one(self.rec, self.model, &measured, self.progress).await?;
        self.progress.begin("evaluate-quantized");
        let (quantized, _) = self.evaluate_folder(QUANTIZED, &measured).await?;
        let mut plain = None;
        if request.compare {
            self.progress.begin("evaluate-compare");
            plain = Some(self.evaluate_folder(UNCORRECTED, &measured).await?.0);
        }
        let files = listing(&written_files(self.storage, QUANTIZED).await?);
        let after = files.iter().map(|(_, bytes)| bytes).sum();
        let memory = Memory {
            wasm_peak: wasm_bytes(),
            device_estimate: pipeline::roomy_plan(self.model.config(), &options).device_bytes,
        };
        let perplexity = Perplexity { original, quantized, plain, tokens };
        let bytes = Bytes { before: self.model.bytes(), after };
        let saved = SavedReport {
            report: &report,
            model: self.model.name(),
            perplexity,
            bytes,
            memory,
            uncorrected: uncorrected.as_ref(),
        };
        let text = serde_json::to_string_pretty(&saved).expect("the keys of a report are words");
        let curve = |report: &Report| report.blocks.iter().map(|block| block.error).collect();
        Ok(Outcome {
            perplexity,
            bytes,
            seconds: seconds() - since,
            blocks: Curves { qep: curve(&report), plain: uncorrected.as_ref().map(curve) },
            layers: layers(&report),
            memory,
            files: file_sizes(files),
            report: text,
        })
    }

    async fn quantize(&mut self, options: &QuantizeOptions, texts: &Texts, folder: &str) -> aquatint::Result<Report> {
        let windows = calibration_windows(&texts.calibration, options)?;
        let run = CheckpointRun::new(self.model, options)?;
        let writer = run.writer(create_folder(self.storage, folder).await?)?;
        let report = run.quantize(self.rec, &windows, writer, None, self.progress).await?;
        self.rec.trim();
        Ok(report)
    }

    async fn evaluate_folder(&mut self, folder: &str, windows: &[Vec<u32>]) -> aquatint::Result<(f64, usize)> {
        let files = written_files(self.storage, folder).await?;
        let written = open_checkpoint(&format!("the {folder} model"), files).await?;
        evaluate_one(self.rec, &written, windows, self.progress).await
    }
}

/// Returns the perplexity of `model` and the number of predicted tokens.
async fn evaluate_one(
    rec: &mut Recorder,
    model: &Checkpoint,
    windows: &[Vec<u32>],
    progress: &mut Progress,
) -> aquatint::Result<(f64, usize)> {
    let network = Network::new(rec, model, None, windows[0].len())?;
    let evaluation = evaluate(rec, &network, None, windows, progress).await?;
    rec.trim();
    Ok((evaluation.perplexity, evaluation.predicted))
}

fn layers(report: &Report) -> Vec<Layer> {
    let layer = |layer: &aquatint::record::LayerReport| Layer {
        name: layer.name.clone(),
        alpha: layer.alpha,
        alpha_optimal: layer.alpha_optimal,
        guarded: layer.guarded,
        error_fitted: layer.error_fitted,
        error_held_out: layer.error_held_out,
        error_uncorrected: layer.error_held_out_uncorrected,
    };
    report.layers.iter().map(layer).collect()
}

/// Returns the size of wasm memory in bytes. Wasm memory never shrinks, so this is its peak.
fn wasm_bytes() -> u64 {
    let memory: js_sys::WebAssembly::Memory = wasm_bindgen::JsCast::unchecked_into(wasm_bindgen::memory());
    let buffer: js_sys::ArrayBuffer = wasm_bindgen::JsCast::unchecked_into(memory.buffer());
    u64::from(buffer.byte_length())
}
