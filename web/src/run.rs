//! A run: quantize into the private file system, once more without correction if asked, and measure all of them.

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

/// The folder of the result.
pub const QUANTIZED: &str = "quantized";
/// The folder of the comparison, which is removed at the end.
const UNCORRECTED: &str = "uncorrected";

/// What the page asks for.
#[derive(Deserialize)]
pub struct Request {
    options: PageOptions,
    calibration: TextArgs,
    compare: bool,
}

/// What it gets.
#[derive(Serialize)]
pub struct Outcome {
    perplexity: Perplexity,
    bytes: Bytes,
    seconds: f64,
    blocks: Curves,
    layers: Vec<Layer>,
    memory: Memory,
    files: Vec<FileSize>,
    /// JSON text to save.
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

/// The file that the page offers to save: the library's report, and what was measured here.
#[derive(Serialize)]
struct SavedReport<'a> {
    #[serde(flatten)]
    report: &'a Report,
    model: &'a str,
    perplexity: Perplexity,
    bytes: Bytes,
    memory: Memory,
    /// The run without correction.
    #[serde(skip_serializing_if = "Option::is_none")]
    uncorrected: Option<&'a Report>,
}

/// Where a run takes place.
pub struct Place<'a> {
    /// The recorder of the GPU.
    pub rec: &'a mut Recorder,
    /// The original.
    pub model: &'a Checkpoint,
    /// Where results go.
    pub storage: &'a JsStorage,
    /// Who is told.
    pub progress: &'a mut Progress,
}

/// The steps of a run, each with its work: tokens times what one takes beside one that is measured on, as seen with the
/// bundled model.
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
    /// The library's options for `model`.
    pub fn options(&self, model: &Checkpoint) -> aquatint::Result<QuantizeOptions> {
        self.options.resolve(model)
    }

    /// Takes the text out and tokenizes it.
    pub async fn texts(&mut self, model: &Checkpoint) -> aquatint::Result<Texts> {
        std::mem::take(&mut self.calibration).tokenize(model).await
    }
}

impl Place<'_> {
    /// All steps. Whatever fails, nothing half-made stays behind.
    pub async fn run(&mut self, request: &Request, texts: &Texts) -> Result<Outcome, Failure> {
        let outcome = self.try_run(request, texts).await;
        let _ = remove_folder(self.storage, UNCORRECTED).await;
        if outcome.is_err() {
            // The first error is the one to tell.
            let _ = remove_folder(self.storage, QUANTIZED).await;
        }
        Ok(outcome?)
    }

    async fn try_run(&mut self, request: &Request, texts: &Texts) -> aquatint::Result<Outcome> {
        let since = seconds();
        let options = request.options(self.model)?;
        let measured = texts.measured(options.seq_len)?;
        self.progress.begin("quantize");
        let report = self.quantize(request, &options, texts, QUANTIZED).await?;
        let mut uncorrected = None;
        if request.compare {
            self.progress.begin("compare");
            let mut plain = options.clone();
            plain.alpha.default = Alpha::Off;
            uncorrected = Some(self.quantize(request, &plain, texts, UNCORRECTED).await?);
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

    async fn quantize(
        &mut self,
        request: &Request,
        options: &QuantizeOptions,
        texts: &Texts,
        folder: &str,
    ) -> aquatint::Result<Report> {
        let windows = calibration_windows(&texts.calibration, options)?;
        let run = CheckpointRun::new(self.model, options, request.options.format()?)?;
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

/// Perplexity and the number of predicted tokens.
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

/// The size of wasm memory, which never shrinks: its peak.
fn wasm_bytes() -> u64 {
    let memory: js_sys::WebAssembly::Memory = wasm_bindgen::JsCast::unchecked_into(wasm_bindgen::memory());
    let buffer: js_sys::ArrayBuffer = wasm_bindgen::JsCast::unchecked_into(memory.buffer());
    u64::from(buffer.byte_length())
}
