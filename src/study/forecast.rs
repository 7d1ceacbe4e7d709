//! What a run will compute, hold and take, worked out before it starts.
//!
//! The work is counted, the memory planned, and the time measured in a trial: a short run of the same kind on random weights.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::shape::{change, with_blocks};
use super::trial::{NoOutput, product_rate, random_windows};
use crate::checkpoint::formats::float::Float;
use crate::checkpoint::{Format, random};
use crate::device::Recorder;
use crate::observer::{Event, Observer};
use crate::pipeline::{Treatment, plan, quantize, work};
use crate::quant::QuantizeOptions;
use crate::record::{Phase, Plan};
use crate::{Checkpoint, Error, Result};

/// Seconds that a trial should take at most if all of it ran at the rate of matrix products.
const TRIAL_SECONDS: f64 = 3.0;
/// Blocks of a trial, if the model has as many. It takes two, since the input of the first has no error to correct.
const TRIAL_BLOCKS: usize = 2;
/// Tokens of a trial below which its model gets narrower instead of its text shorter.
const TRIAL_TOKENS: usize = 2048;
/// Entries of the vocabulary in a trial.
const VOCABULARY: usize = 256;
/// The keys of config.json that hold widths of activations. A trial divides all that a model has.
const WIDTHS: [&str; 8] = [
    "hidden_size",
    "intermediate_size",
    "n_embd",
    "n_embed",
    "n_inner",
    "ffn_dim",
    "ffn_hidden_size",
    "word_embed_proj_dim",
];
/// The keys of config.json that hold the number of query heads.
const HEADS: [&str; 2] = ["num_attention_heads", "n_head"];
/// The keys of config.json that hold a number of key heads.
const KEY_HEADS: [&str; 4] = ["num_key_value_heads", "num_global_key_value_heads", "num_kv_heads", "n_head_kv"];
/// The keys of config.json that hold the number of positions.
const POSITIONS: [&str; 3] = ["max_position_embeddings", "n_positions", "seq_length"];

/// What a run will compute, hold and take.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Floating-point operations of each phase.
    pub work: BTreeMap<Phase, f64>,
    /// What will be held where.
    pub plan: Plan,
    /// Operations per second of f32 matrix products on the device.
    pub product_rate: f64,
    /// The time at the rates of a trial. `None` if no trial fits the options, or if it had nothing to do in one of the phases.
    pub extrapolation: Option<Extrapolation>,
}

/// The time of a run at the rates of a trial, and what the trial was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extrapolation {
    /// Seconds that the run will take.
    pub seconds: f64,
    /// Blocks of the trial.
    pub blocks: usize,
    /// Width of its residual stream.
    pub hidden: usize,
    /// Its calibration tokens.
    pub tokens: usize,
}

impl Forecast {
    /// Forecasts the quantization of `model` with `options` on the device and within the memory of `rec`. Takes some seconds.
    ///
    /// Errors: `Error::Input` if the memory is too small, `Error::Cancelled`, and what the device reports.
    pub async fn new(
        rec: &mut Recorder,
        model: &Checkpoint,
        options: &QuantizeOptions,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let work = work(model.config(), options);
        let plan = plan(model.config(), &[options], rec)?;
        let product_rate = product_rate(rec, observer).await?;
        // Without a clock there is nothing to extrapolate from.
        let trial = match product_rate.is_finite() {
            true => Trial::largest(model, options, TRIAL_SECONDS * product_rate).await,
            false => None,
        };
        let extrapolation = match trial {
            Some(trial) => trial.extrapolate(rec, &work, observer).await?,
            None => None,
        };
        Ok(Self { work, plan, product_rate, extrapolation })
    }

    /// Floating-point operations of all phases.
    pub fn operations(&self) -> f64 {
        self.work.values().sum()
    }

    /// Seconds if all operations ran at the rate of matrix products.
    pub fn least_seconds(&self) -> f64 {
        self.operations() / self.product_rate
    }
}

/// A short run of the same kind, on random weights and random tokens.
struct Trial {
    model: Checkpoint,
    options: QuantizeOptions,
}

impl Trial {
    /// The largest trial of at most `most` operations; the smallest one if all have more, `None` if the options fit none.
    async fn largest(model: &Checkpoint, options: &QuantizeOptions, most: f64) -> Option<Self> {
        let halved =
            std::iter::successors(Some(options.samples), |&samples| (samples > 2).then_some(samples.div_ceil(2)));
        let enough = |&samples: &usize| samples == options.samples || samples * options.seq_len >= TRIAL_TOKENS;
        let fewer: Vec<usize> = halved.take_while(enough).collect();
        let least = fewer.last().copied()?;
        let sizes = fewer.into_iter().map(|samples| (1, samples)).chain([2, 4, 8, 16].map(|divisor| (divisor, least)));
        let mut last = None;
        for (divisor, samples) in sizes {
            let Some(trial) = Self::new(model, options, divisor, samples).await else { continue };
            let fits = work(trial.model.config(), &trial.options).values().sum::<f64>() <= most;
            last = Some(trial);
            if fits {
                break;
            }
        }
        last
    }

    /// A trial on `samples` windows with a model that is `divisor` times narrower; `None` if there is no such model, or if the options
    /// do not fit it.
    async fn new(model: &Checkpoint, options: &QuantizeOptions, divisor: usize, samples: usize) -> Option<Self> {
        let config = Value::Object(narrowed(model, divisor, options.seq_len));
        let model = random("a trial", &config, options.seed).await.ok()?;
        // Nothing is stored, and the format of the run may not store the shapes of a narrower model.
        let format = Some(Float.name().to_string());
        let options = QuantizeOptions { format, samples, blocks: None, lm_head: false, ..options.clone() };
        Treatment::new(&options, model.config()).validate().ok()?;
        Some(Self { model, options })
    }

    /// The time of `work` at the rates of this trial; `None` if the trial had nothing to do in one of its phases.
    async fn extrapolate(
        &self,
        rec: &mut Recorder,
        work: &BTreeMap<Phase, f64>,
        observer: &dyn Observer,
    ) -> Result<Option<Extrapolation>> {
        let rates = self.rates(rec, observer).await?;
        let phases = work.iter().filter(|(_, count)| **count > 0.0);
        let seconds = phases.map(|(phase, count)| Some(count / rates.get(phase)?)).sum::<Option<f64>>();
        let blocks = &self.model.config().blocks;
        Ok(seconds.map(|seconds| Extrapolation {
            seconds,
            blocks: blocks.len(),
            // The first block may begin with a narrower embedding.
            hidden: blocks[blocks.len() - 1].widths[0],
            tokens: self.options.samples * self.options.seq_len,
        }))
    }

    /// Operations per second in each phase that had something to do; in none if a value overflowed.
    async fn rates(&self, rec: &mut Recorder, observer: &dyn Observer) -> Result<BTreeMap<Phase, f64>> {
        let windows = random_windows(&self.options, VOCABULARY);
        let mut silent = Silent(observer);
        let report = match quantize(rec, &self.model, &windows, &self.options, &mut NoOutput, &mut silent).await {
            // Random weights may overflow where trained ones do not.
            Err(Error::NotFinite { .. }) => return Ok(BTreeMap::new()),
            report => report?,
        };
        let work = work(self.model.config(), &self.options);
        let rate = |(phase, count): (Phase, f64)| {
            let seconds = report.seconds.get(&phase).copied().filter(|&seconds| seconds > 0.0 && count > 0.0)?;
            Some((phase, count / seconds))
        };
        Ok(work.into_iter().filter_map(rate).collect())
    }
}

/// The config.json of a model of the same family that has the blocks of a trial, is `divisor` times narrower and sees
/// `positions` positions. Heads keep their width, and their number is divided.
fn narrowed(model: &Checkpoint, divisor: usize, positions: usize) -> Map<String, Value> {
    let blocks = &model.config().blocks;
    let mut config = with_blocks(model.raw_config(), model.config(), TRIAL_BLOCKS.min(blocks.len()));
    let keys = model.config().keys_in(&mut config);
    let attention = blocks[0].attentions().next().map(|(_, attention)| attention);
    let heads = attention.map_or(1, |attention| (attention.heads / divisor).max(1));
    // Where all heads together are as wide as the residual stream, they stay so.
    let queries = attention.map(|attention| (attention.queries(), heads * attention.head_dim));
    change(keys, &WIDTHS, |width| match queries {
        Some((queries, fewer)) if width == queries => fewer,
        _ => (width / divisor).max(1),
    });
    change(keys, &HEADS, |_| heads);
    let key_heads = |key_heads: usize| {
        let most = (key_heads / divisor).max(1);
        (1..=most).rev().find(|&number| heads.is_multiple_of(number)).unwrap_or(1)
    };
    change(keys, &KEY_HEADS, key_heads);
    if let Some(single) = keys.get_mut("per_layer_config").and_then(Value::as_object_mut) {
        single.values_mut().filter_map(Value::as_object_mut).for_each(|layer| change(layer, &KEY_HEADS, key_heads));
    }
    change(keys, &POSITIONS, |_| positions);
    keys.insert("vocab_size".to_string(), json!(VOCABULARY));
    keys.insert("tie_word_embeddings".to_string(), json!(true));
    config
}

/// Passes on the clock and cancellation of an observer, and no events.
struct Silent<'a>(&'a dyn Observer);

impl Observer for Silent<'_> {
    fn event(&mut self, _: &Event) {}

    fn seconds(&self) -> f64 {
        self.0.seconds()
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures::executor::block_on;

    use super::*;
    use crate::ModelConfig;
    use crate::family::Block;

    #[test]
    fn a_narrower_model_keeps_its_kind_and_its_heads() {
        let config = json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": 640, "intermediate_size": 1000, "num_attention_heads": 10,
            "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 3, "vocab_size": 3000, "rms_norm_eps": 1e-5,
            "layer_types": ["full_attention", "full_attention", "full_attention"], "max_position_embeddings": 512
        });
        let model = block_on(random("a model", &config, 0)).unwrap();
        let expected = json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": 160, "intermediate_size": 250, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 256, "rms_norm_eps": 1e-5,
            "layer_types": ["full_attention", "full_attention"], "max_position_embeddings": 64, "tie_word_embeddings": true
        });
        assert_eq!(Value::Object(narrowed(&model, 4, 64)), expected);
    }

    /// What a trial must share with a block of the model: the groups of linear layers, and windows and widths of heads.
    fn structure(block: &Block) -> (Vec<String>, Vec<(Option<usize>, usize)>) {
        let heads = block.attentions().map(|(_, attention)| (attention.window, attention.head_dim));
        (block.stops().map(|stop| block.label(stop)).collect(), heads.collect())
    }

    #[test]
    fn every_family_narrows_to_blocks_of_its_kind() {
        let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
        let folders = std::fs::read_dir(families).unwrap().map(|folder| folder.unwrap().path());
        for folder in folders.filter(|folder| folder.join("config.json").is_file()) {
            let model = block_on(Checkpoint::open(&folder)).unwrap();
            let (name, blocks) = (model.name(), &model.config().blocks);
            for divisor in [1, 2, 4] {
                let config = Value::Object(narrowed(&model, divisor, 32));
                let trial = block_on(random("a trial", &config, 0)).unwrap_or_else(|error| panic!("{name}: {error}"));
                let trial = trial.config();
                assert_eq!(trial.model_type, model.config().model_type);
                assert_eq!(trial.blocks.len(), TRIAL_BLOCKS.min(blocks.len()), "{name}");
                assert_eq!(structure(&trial.blocks[0]), structure(&blocks[0]), "{name} / {divisor}");
                let last = structure(&trial.blocks[trial.blocks.len() - 1]);
                let known = blocks[1.min(blocks.len() - 1)..].iter().any(|block| structure(block) == last);
                assert!(known, "{name} / {divisor}: {last:?}");
                let folds = |block: &Block| block.stops().map(|stop| block.fold(stop).is_some()).collect::<Vec<_>>();
                assert!(divisor > 1 || folds(&trial.blocks[0]) == folds(&blocks[0]), "{name}");
                let width = |model: &ModelConfig| model.blocks[0].widest();
                assert!(divisor == 1 || width(trial) < width(model.config()), "{name} / {divisor}");
            }
        }
    }
}
