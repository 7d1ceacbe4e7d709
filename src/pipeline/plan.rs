//! What a run will hold, and where: worked out before it starts.
//!
//! On the device are the weights of one block, what is computed about one group of linears, and the chunk in hand. The hidden
//! states of all chunks are there too if they fit, else in host memory, else in a file.

use crate::device::{Device, Memory, Place, Precision, Recorder};
use crate::engine::block::{Stage, widest_activation};
use crate::engine::network::sequences_per_chunk;
use crate::family::ModelConfig;
use crate::ops::cooperative::PLANES;
use crate::ops::gram::packed_len;
use crate::pipeline::Treatment;
use crate::quant::QuantizeOptions;
use crate::quant::methods::HessianForm;
use crate::record::Plan;
use crate::tensor::MOST_FREE;
use crate::{Error, Result};

/// Tokens that a chunk should have before hidden states leave the device: fewer leave a GPU idle.
const WORTHWHILE_TOKENS: usize = 1024;

impl Plan {
    /// The plan for `runs` together, all of the same samples, that keeps to the memory of `rec`.
    ///
    /// Errors: `Error::Input` naming `--seq-len` if not even one sequence can be bound, and `--memory` if nothing fits.
    pub fn new(config: &ModelConfig, runs: &[&QuantizeOptions], rec: &Recorder) -> Result<Self> {
        let on_cpu = matches!(rec.device(), Device::Cpu);
        let beside = rec.memory().beside;
        let load = Load { config, runs, on_cpu, beside, fast: rec.device().precision() == Precision::Fast };
        let quick = load.fast && matches!(rec.device(), Device::Gpu(gpu) if !gpu.is_software());
        load.check_bindings(rec.device())?;
        let seq_len = load.options().seq_len;
        let most = sequences_per_chunk(config, rec, seq_len)?;
        let [device_limit, host_limit] =
            [rec.memory().device, rec.memory().host].map(|limit| limit.unwrap_or(u64::MAX));
        let fits = |plan: &Self| plan.device_bytes <= device_limit && plan.host_bytes <= host_limit;
        let sizes = || std::iter::successors(Some(most), |&size| (size > 1).then_some(size / 2));
        let worthwhile = |&size: &usize| size == most || size * seq_len >= WORTHWHILE_TOKENS;
        let keeping = |place: Place| match rec.memory().recompute {
            Some(recompute) => vec![(place, recompute)],
            // A token of a 7B model is 0.36 Gflop, or 44 kB that are written once and read twice.
            None if quick => vec![(place, false), (place, true)],
            None => vec![(place, false)],
        };
        let below = rec.memory().streams.and_below(rec.device());
        let places = below.iter().copied().flat_map(keeping);
        let with_spare = |plan: Self| {
            let spare_bytes = if on_cpu { MOST_FREE.min(device_limit - plan.device_bytes) } else { 0 };
            Self { spare_bytes, device_bytes: plan.device_bytes + spare_bytes, ..plan }
        };
        let mut wanted = places.flat_map(|place| sizes().filter(worthwhile).map(move |size| (place, size)));
        let fitting = wanted.find_map(|(place, size)| Some(load.plan(place, size)).filter(fits));
        // Keeping takes less of the device than computing again.
        let last = (below[below.len() - 1], rec.memory().recompute.unwrap_or(false));
        let smaller = || sizes().map(|size| load.plan(last, size)).find(fits);
        fitting.or_else(smaller).map(with_spare).ok_or_else(|| {
            let least = load.plan(last, 1).device_bytes;
            Error::input(
                "--memory",
                format!("{} MB", device_limit / 1_000_000),
                format!(
                    "at least {} MB, for the program, the weights of one block, the statistics of one group and one sequence",
                    least.div_ceil(1_000_000)
                ),
                "allow more, or use shorter sequences (--seq-len)",
            )
        })
    }

    /// How many chunks of that many tokens each, before any block, take no more than a block's weights; at least one.
    pub(super) fn chunks_like_a_block(config: &ModelConfig, chunk_tokens: usize) -> usize {
        let weights = Load { config, runs: &[], on_cpu: false, beside: 0, fast: false }.weights() as usize;
        (weights / (chunk_tokens * config.hidden_size)).max(1)
    }

    /// The plan of one run for which there is memory enough.
    pub fn roomy(config: &ModelConfig, options: &QuantizeOptions) -> Self {
        let per_chunk = (Memory::default().chunk_tokens / options.seq_len).max(1);
        Load { config, runs: &[options], on_cpu: false, beside: 0, fast: false }.plan((Place::Device, false), per_chunk)
    }

    /// Columns of what is kept of a token between two groups at most: the residual stream, and what the next group reads.
    pub(super) fn kept_columns(&self, config: &ModelConfig) -> usize {
        let heads = config.num_attention_heads * config.head_dim;
        config.hidden_size + if self.recompute { heads } else { heads.max(config.intermediate_size) }
    }
}

/// What there is to do.
struct Load<'a> {
    config: &'a ModelConfig,
    runs: &'a [&'a QuantizeOptions],
    on_cpu: bool,
    /// Bytes that the program takes beside arrays.
    beside: u64,
    /// Whether large products go to the fast tier.
    fast: bool,
}

/// A group of linears by its extents.
struct Extents {
    /// Inputs.
    n: u64,
    /// Outputs of all of them.
    rows: u64,
    /// Outputs of the largest.
    largest: u64,
    /// Outputs of the linears that its input is computed from each time.
    made: u64,
}

impl Load<'_> {
    fn options(&self) -> &QuantizeOptions {
        self.runs[0]
    }

    fn plan(&self, (streams, recompute): (Place, bool), sequences_per_chunk: usize) -> Plan {
        let options = self.options();
        let tokens = (options.samples * options.seq_len) as u64;
        let chunk = tokens.min((sequences_per_chunk * options.seq_len) as u64);
        let mut plan = Plan {
            sequences_per_chunk,
            streams,
            recompute,
            device_bytes: 0,
            spare_bytes: 0,
            host_bytes: 0,
            file_bytes: 0,
        };
        let stream_bytes = 4 * (1 + self.runs.len() as u64) * tokens * plan.kept_columns(self.config) as u64;
        match streams {
            Place::Device => plan.device_bytes = stream_bytes,
            Place::Host => plan.host_bytes = stream_bytes,
            Place::File => plan.file_bytes = stream_bytes,
        }
        let arrays = 4 * (self.weights() + self.transient(chunk, recompute));
        // Before a block is handed over, its layers are there as they are stored, as the stream saw them, and as a record.
        let handed_over = 12 * self.weights();
        // A GPU's buffers come in sizes an eighth apart.
        let arrays = arrays + if self.on_cpu { self.beside + handed_over } else { arrays / 8 };
        plan.device_bytes += arrays;
        plan
    }

    /// Errors: `Error::Input` naming `--device` if that cannot bind a weight, or H as the methods need it.
    fn check_bindings(&self, device: &Device) -> Result<()> {
        let specs = self.config.block_linears(0);
        let weights = specs.iter().map(|spec| spec.rows as u64 * spec.columns as u64);
        let dense = self.runs.iter().any(|run| run.method.quantizer().needs().hessian == Some(HessianForm::Dense));
        let hessians = specs.iter().map(|spec| match dense {
            true => (spec.columns as u64).pow(2),
            false => packed_len(spec.columns) as u64,
        });
        let (needed, bound) = (4 * weights.chain(hessians).max().unwrap_or(0), device.largest_array());
        if needed <= bound {
            return Ok(());
        }
        let found = format!("{}, which can bind {bound} bytes at a time", device.name());
        let expected = format!("at least {needed}, for the widest layer's weight or its Hessian");
        Err(Error::input("--device", found, expected, "use another device, or --device cpu"))
    }

    /// Elements of a block's weights.
    fn weights(&self) -> u64 {
        self.config.block_linears(0).iter().map(|linear| linear.rows as u64 * linear.columns as u64).sum()
    }

    /// Elements that the most demanding moment of any group takes beside the block, with `chunk` tokens in hand.
    fn transient(&self, chunk: u64, recompute: bool) -> u64 {
        let all = self.config.block_linears(0);
        let groups = Stage::ALL.into_iter().map(|stage| {
            let specs = &all[stage.linears()];
            let rows = || specs.iter().map(|spec| spec.rows as u64);
            let made = if recompute && stage == Stage::Down { &all[Stage::GateUp.linears()] } else { &[][..] };
            let made = made.iter().map(|spec| spec.rows as u64).sum();
            Extents { n: specs[0].columns as u64, rows: rows().sum(), largest: rows().max().unwrap_or(0), made }
        });
        let head = self.config.head_linear();
        let (n, rows) = (head.columns as u64, head.rows as u64);
        let head = self.runs.iter().any(|run| run.lm_head).then_some(Extents { n, rows, largest: rows, made: 0 });
        groups.chain(head).map(|group| self.group(&group, chunk)).max().unwrap_or(0)
    }

    fn group(&self, group: &Extents, chunk: u64) -> u64 {
        let Extents { n, rows, largest, made } = *group;
        let (square, weights, linear) = (n * n, rows * n, largest * n);
        let runs = self.runs.len() as u64;
        // What the runs before have made of the group.
        let others = (runs - 1) * weights;
        let quantizing = self.runs.iter().map(|options| {
            let correlate = options.alpha.corrects();
            if !Treatment::new(options, self.config).needs_calibration() {
                return 6 * linear + weights;
            }
            let held_out = correlate && options.held_out() > 0;
            let parts = if options.held_out() > 0 { 2 } else { 1 };
            // H as tiles; D.
            let statistics = parts * (square / 2 + if correlate { square } else { 0 });
            // X, X̂, and on the CPU their difference.
            let gathering = chunk * n * if self.on_cpu { 3 } else { 2 };
            // The factor; on the CPU dense while it is made, and again while it solves.
            let factor = square / 2 + if self.on_cpu { square } else { 0 };
            // Of what is held out W·D of every linear, and rows of H while one is judged.
            let kept = statistics + factor + if held_out { weights + n * n.min(2048) } else { 0 };
            let correcting = if correlate { 3 * weights + 3 * linear } else { weights + linear };
            let rounding = options.method.quantizer().held_elements(n);
            let rounding = rounding + 3 * weights + 10 * linear;
            (statistics + gathering).max(kept + correcting.max(rounding))
        });
        // The inputs of both streams, the outputs of both, and what they are folded into.
        let widest = widest_activation(self.config) as u64;
        let forward = runs * weights + chunk * (2 * n + 2 * rows + 2 * self.config.hidden_size as u64 + widest);
        // A GPU gets the next block while it computes.
        let forward = forward + if self.on_cpu { 0 } else { self.weights() };
        // The weights of gate and up that each run goes through, their outputs, and what they read.
        let hidden = self.config.hidden_size as u64;
        let making = if made == 0 { 0 } else { runs * made * hidden + chunk * (made + 2 * hidden) };
        // Both operands of a product in planes of f16.
        let planes = if self.fast { 2 * (PLANES / 4).min((chunk * rows.max(n)).max(linear)) } else { 0 };
        (quantizing.max().unwrap_or(0) + others).max(forward) + making + planes
    }
}
