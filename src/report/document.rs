//! Runs as files: one run is its report with what is known beside it, a document is several runs.

use serde::{Deserialize, Serialize};

use crate::error::{Phrase, Setting, phrase};
use crate::record::Report;
use crate::{Error, Result, eval};

/// Opens the document in a page, which is JSON up to the next `<`.
pub(super) const EMBEDDED: &str = "<script type=\"application/json\" id=\"aquatint-document\">";

/// One or more runs, to be shown together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// What the page is headed with.
    pub title: String,
    /// The command that made it: quantize, sweep, error-growth or report.
    pub command: String,
    /// Version of this crate.
    pub aquatint: String,
    /// In the order in which they are shown.
    pub runs: Vec<Run>,
}

/// A report, and what the pipeline does not know of the run. In JSON the report's fields stand beside the others, so that a
/// run is read wherever a report is, and a report alone is a run of which no more is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Tells the runs of a document apart, in a few words; empty if there is nothing to say.
    #[serde(default)]
    pub label: String,
    /// Name of the model; empty if unknown.
    #[serde(default)]
    pub model: String,
    /// What the pipeline recorded.
    #[serde(flatten)]
    pub report: Report,
    /// Sizes of the checkpoints, where one was written or planned.
    #[serde(default)]
    pub sizes: Option<Sizes>,
    /// What the quantized model makes of some texts.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
}

/// What storage the quantization saves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Bytes of the original checkpoint.
    pub original_bytes: u64,
    /// Bytes of the quantized checkpoint.
    pub quantized_bytes: u64,
    /// Bits that a quantized weight takes, scales and zero points included.
    #[serde(default)]
    pub bits_per_weight: Option<f64>,
}

/// What the quantized model makes of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Name of the text.
    pub text: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens per window; all but the first are predicted.
    pub seq_len: usize,
    /// Predicted tokens.
    pub tokens: usize,
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The same of the original model.
    #[serde(default)]
    pub original_perplexity: Option<f64>,
    /// Mean KL(original ‖ quantized) per predicted token, in nats.
    #[serde(default)]
    pub kl: Option<f64>,
    /// Share of predicted tokens for which both models rank the same token first.
    #[serde(default)]
    pub top1_agreement: Option<f64>,
}

impl Document {
    /// A document of this version.
    pub fn new(title: impl Into<String>, command: impl Into<String>, runs: Vec<Run>) -> Self {
        Self { title: title.into(), command: command.into(), aquatint: env!("CARGO_PKG_VERSION").to_string(), runs }
    }

    /// Reads a record or a page that was written: a document, the page around one, or the record of one run, which is then all
    /// there is in the document.
    ///
    /// `name`: the file as the user knows it. Errors: `Error::Input` if it is none of these, or has no runs.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| refused(name, "bytes that are no text"))?;
        let text = match text.split_once(EMBEDDED) {
            Some((_, rest)) => rest.split('<').next().unwrap_or_default(),
            None if text.trim_start().starts_with('<') => return Err(refused(name, "a page without a document in it")),
            None => text,
        };
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| refused(name, format!("no JSON ({error})")))?;
        let other = |error: serde_json::Error| refused(name, format!("other JSON ({error})"));
        if value.get("runs").is_some() {
            let document: Self = serde_json::from_value(value).map_err(other)?;
            return if document.runs.is_empty() { Err(refused(name, "no runs")) } else { Ok(document) };
        }
        let run: Run = serde_json::from_value(value).map_err(other)?;
        let title = if run.model.is_empty() { name } else { &run.model };
        Ok(Self {
            title: title.to_string(),
            command: "quantize".to_string(),
            aquatint: run.report.aquatint.clone(),
            runs: vec![run],
        })
    }
}

impl Run {
    /// A run of which the report alone is known so far.
    pub fn new(label: impl Into<String>, model: impl Into<String>, report: Report) -> Self {
        Self { label: label.into(), model: model.into(), report, sizes: None, evaluations: Vec::new() }
    }
}

impl Evaluation {
    /// From a measurement of the quantized model; if it was made against another model, that one is the original.
    pub fn new(text: impl Into<String>, measured: &eval::Evaluation) -> Self {
        let against = measured.against.as_ref();
        Self {
            text: text.into(),
            windows: measured.windows,
            seq_len: measured.seq_len,
            tokens: measured.predicted,
            perplexity: measured.perplexity,
            original_perplexity: against.map(|against| against.perplexity),
            kl: against.map(|against| against.kl),
            top1_agreement: against.map(|against| against.top1_agreement),
        }
    }
}

fn refused(name: &str, found: impl Into<Phrase>) -> Error {
    let (record, page) = (Setting::Json, Setting::Report);
    let expected = phrase!["a file that ", record, " or ", page, " of quantize, sweep, error-growth or report wrote"];
    let remedy = phrase!["give the record of a run, or make one with aquatint quantize ", record];
    Error::input(name, found, expected, remedy)
}
