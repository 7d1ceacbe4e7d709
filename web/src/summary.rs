//! Facts that the page shows before a run: a summary of the opened model, and a plan of the run that the options describe.
//! Both list the problems that prevent a run, and warnings.

use aquatint::checkpoint::{Checkpoint, DEFAULT_SHARD_LIMIT, WritePlan};
use aquatint::device::Device;
use aquatint::pipeline::{Treatment, largest_array, roomy_plan};
use aquatint::quant::GroupSize;
use serde::Serialize;

use crate::failure::Failure;
use crate::options::PageOptions;

/// The summary of an opened model.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelSummary {
    name: String,
    family: String,
    parameters: u64,
    blocks: usize,
    hidden: usize,
    widest: usize,
    vocab: usize,
    context: usize,
    bytes: u64,
    dtype: String,
    group_sizes: Vec<i64>,
    files: Vec<FileSize>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// The name and the size of a file.
#[derive(Serialize)]
pub struct FileSize {
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// Converts names and sizes to the form that the page reads.
pub fn file_sizes(listing: Vec<(String, u64)>) -> Vec<FileSize> {
    listing.into_iter().map(|(name, bytes)| FileSize { name, bytes }).collect()
}

/// The memory, output size and tokens of a run with given options, with its problems and warnings.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct RunPlan {
    device_bytes: u64,
    largest_array: u64,
    output_bytes: u64,
    tokens: usize,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// Describes `model`. `listing`: its files and their sizes. `device`: the GPU, if there is one.
pub fn describe(model: &Checkpoint, listing: Vec<(String, u64)>, device: Option<&Device>) -> ModelSummary {
    let config = model.config();
    let linears = config.linears();
    let fits = |&size: &i64| size == -1 || linears.iter().all(|linear| linear.columns % size as usize == 0);
    let mut problems = Vec::new();
    if model.quantized_layout().is_some() {
        problems.push("This checkpoint is quantized already; open the original model.".to_owned());
    }
    let dtype_of = |name: &str| model.dtype(&format!("{name}.weight")).map(|dtype| dtype.to_string().to_lowercase());
    let dtype = match model.layout() {
        Some(layout) => layout.to_owned(),
        None => linears.first().and_then(|linear| dtype_of(&linear.name).ok()).unwrap_or_default(),
    };
    if let Some(problem) = device.and_then(|device| too_large(model, 2, device)) {
        problems.push(problem);
    }
    ModelSummary {
        name: model.name().to_owned(),
        family: config.model_type.to_owned(),
        parameters: model.parameters(),
        blocks: config.blocks.len(),
        hidden: config.hidden_size,
        widest: config.widest(),
        vocab: config.vocab_size,
        context: config.max_position_embeddings,
        bytes: model.bytes(),
        dtype,
        group_sizes: [-1, 32, 64, 128].into_iter().filter(fits).collect(),
        files: file_sizes(listing),
        problems,
        warnings: model.notes().into_iter().map(|note| format!("{note}.")).collect(),
    }
}

fn too_large(model: &Checkpoint, seq_len: usize, device: &Device) -> Option<String> {
    let (needed, limit) = (largest_array(model.config(), seq_len), device.largest_array());
    let [needed_mb, limit_mb] = [needed, limit].map(|bytes| bytes as f64 / 1e6);
    (needed > limit).then(|| {
        format!(
            "One array of this model takes {needed_mb:.0} MB, and this browser's GPU gives at most {limit_mb:.0} MB to one; \
             choose a smaller model or length, or use the command line."
        )
    })
}

/// Plans a run of `model` with `options`.
pub async fn plan(model: &Checkpoint, options: &PageOptions, device: Option<&Device>) -> RunPlan {
    let sentence = |error| Failure::from(error).into_message();
    let resolved = match options.resolve(model) {
        Ok(resolved) => resolved,
        Err(error) => return RunPlan { problems: vec![sentence(error)], ..RunPlan::default() },
    };
    let config = model.config();
    let tokens = resolved.samples * resolved.seq_len;
    let mut plan = RunPlan {
        device_bytes: roomy_plan(config, &resolved).device_bytes,
        largest_array: largest_array(config, resolved.seq_len),
        tokens,
        ..RunPlan::default()
    };
    let treatment = Treatment::new(&resolved, config);
    let written = async {
        let layers = treatment.layers();
        WritePlan::new(model, treatment.format()?, treatment.settings(), &layers, DEFAULT_SHARD_LIMIT).await
    };
    match written.await {
        Ok(written) => {
            plan.output_bytes = written.bytes();
            let notes = written.notes().iter().cloned().chain(treatment.notes());
            plan.warnings.extend(notes.map(|note| format!("{note}.")));
        }
        Err(error) => plan.problems.push(sentence(error)),
    }
    plan.problems.extend(device.and_then(|device| too_large(model, resolved.seq_len, device)));
    if tokens < 2 * config.widest() {
        plan.warnings.push(format!(
            "{tokens} tokens are few for layers {} wide; more samples give a better model.",
            config.widest()
        ));
    }
    if resolved.group_size == GroupSize::Auto && treatment.group_size().is_none() {
        plan.warnings.push("No group size divides every layer, so there will be one grid per row.".to_owned());
    }
    plan
}
