//! What `--dry-run` says a run will compute, hold and take.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aquatint::Result;
use aquatint::checkpoint::random;
use aquatint::device::{Device, Memory, Recorder};
use aquatint::family::ModelConfig;
use aquatint::observer::{Event, Observer};
use aquatint::pipeline::{Treatment, quantize, work};
use aquatint::quant::QuantizeOptions;
use aquatint::record::{Phase, Plan};
use aquatint::{Checkpoint, Error};
use indicatif::{HumanBytes, HumanDuration};
use serde_json::json;

use super::bench_model::{Nowhere, random_windows};
use super::memory::describe;
use super::speed::{operations, product_rate, summary};

/// Seconds that a trial should take, about, at the rate of matrix products.
const TRIAL_SECONDS: f64 = 3.0;
/// Blocks of a trial: in the first one nothing arrives that could be corrected.
const TRIAL_BLOCKS: usize = 2;
/// Tokens that a trial keeps before its model gets narrower.
const TRIAL_TOKENS: usize = 2048;
/// Entries of its vocabulary.
const VOCABULARY: usize = 256;

/// Prints what the run would compute, hold and take.
pub fn forecast(device: &Device, memory: Memory, model: &Checkpoint, options: &QuantizeOptions) -> Result<()> {
    let config = model.config();
    let work = work(config, options);
    let all: f64 = work.values().sum();
    let mut rec = Recorder::new(device);
    rec.set_memory(memory);
    let plan = Plan::new(config, &[options], &rec)?;
    let rate = product_rate(&mut rec)?;
    say!("work: {}; in all {}", summary(&work), operations(all));
    if let Some(trial) = Trial::new(config, options, TRIAL_SECONDS * rate) {
        let rates = trial.rates(&mut rec)?;
        let phases = work.iter().filter(|(_, count)| **count > 0.0);
        // Nothing is said where the trial had nothing to do in some phase.
        if let Some(seconds) = phases.map(|(phase, count)| Some(count / rates.get(phase)?)).sum::<Option<f64>>() {
            say!(
                "time: about {}, as {TRIAL_BLOCKS} random blocks {} wide just took with {} tokens",
                duration(seconds),
                trial.hidden,
                trial.options.samples * options.seq_len
            );
        }
    }
    say!(
        "time: at least {}, were all of it as fast as the f32 matrix products just measured, {:.1} Gflop/s",
        duration(all / rate),
        rate / 1e9
    );
    say!("memory: {}; {} of weights are read block by block", describe(&plan), HumanBytes(model.bytes()));
    Ok(())
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..600.0 => format!("{seconds:.0} seconds"),
        _ => HumanDuration(Duration::from_secs_f64(seconds)).to_string(),
    }
}

/// A run of the same kind that takes little time.
struct Trial {
    model: Checkpoint,
    options: QuantizeOptions,
    /// Width of the residual stream.
    hidden: usize,
}

impl Trial {
    /// The largest of at most `most` operations, or the smallest of all; `None` if the options fit none of them.
    fn new(config: &ModelConfig, options: &QuantizeOptions, most: f64) -> Option<Self> {
        let halved =
            std::iter::successors(Some(options.samples), |&samples| (samples > 2).then_some(samples.div_ceil(2)));
        let enough = |&samples: &usize| samples == options.samples || samples * options.seq_len >= TRIAL_TOKENS;
        let fewer: Vec<usize> = halved.take_while(enough).collect();
        let least = fewer.last().copied()?;
        let sizes = fewer.into_iter().map(|samples| (1, samples)).chain([2, 4, 8, 16].map(|divisor| (divisor, least)));
        let mut last = None;
        for (divisor, samples) in sizes {
            let Some(trial) = Self::of(config, options, divisor, samples) else { continue };
            let fits = work(trial.model.config(), &trial.options).values().sum::<f64>() <= most;
            last = Some(trial);
            if fits {
                break;
            }
        }
        last
    }

    /// A model `divisor` times narrower, on that many windows.
    fn of(config: &ModelConfig, options: &QuantizeOptions, divisor: usize, samples: usize) -> Option<Self> {
        let narrow = |extent: usize| (extent / divisor).max(1);
        let shape = json!({
            "architectures": ["LlamaForCausalLM"], "num_hidden_layers": TRIAL_BLOCKS,
            "hidden_size": narrow(config.hidden_size), "intermediate_size": narrow(config.intermediate_size),
            "num_attention_heads": narrow(config.num_attention_heads),
            "num_key_value_heads": narrow(config.num_key_value_heads), "head_dim": config.head_dim,
            "vocab_size": VOCABULARY, "max_position_embeddings": options.seq_len, "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": true,
        });
        let model = pollster::block_on(random("a trial", &shape, options.seed)).ok()?;
        let options = QuantizeOptions { samples, blocks: None, lm_head: false, ..options.clone() };
        Treatment::new(&options, model.config()).validate().ok()?;
        Some(Self { hidden: narrow(config.hidden_size), model, options })
    }

    /// Operations per second of each phase that it had something to do in; of none if the numbers overflow.
    fn rates(&self, rec: &mut Recorder) -> Result<BTreeMap<Phase, f64>> {
        let windows = random_windows(&self.options, VOCABULARY);
        let (mut nowhere, mut watch) = (Nowhere, Stopwatch(Instant::now()));
        let run = quantize(rec, &self.model, &windows, &self.options, &mut nowhere, &mut watch);
        let report = match pollster::block_on(run) {
            // Random weights may not bear what real ones do.
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

/// Looks at the time and at nothing else.
struct Stopwatch(Instant);

impl Observer for Stopwatch {
    fn event(&mut self, _: &Event) {}

    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn cancelled(&self) -> bool {
        false
    }
}
