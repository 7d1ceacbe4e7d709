//! What a run will hold, and where: worked out before it starts.
//!
//! On the device are the weights of one group of linear layers, what is computed about it, and the chunk in hand. The hidden
//! states of all chunks are there too if they fit, else in host memory, else in a file.

use super::Treatment;
use crate::device::{Device, Memory, Place, Precision, Recorder};
use crate::engine::network::sequences_per_chunk;
use crate::error::{Setting, phrase};
use crate::family::{Block, Cut, Linear, ModelConfig};
use crate::ops::cooperative::PLANES;
use crate::ops::gram::packed_len;
use crate::quant::QuantizeOptions;
use crate::quant::methods::HessianForm;
use crate::record::Plan;
use crate::tensor::MOST_FREE;
use crate::{Error, Result};

/// Tokens that a chunk should have before hidden states leave the device: fewer leave a GPU idle.
const WORTHWHILE_TOKENS: usize = 1024;

/// The plan for `runs` together, all of the same samples, that keeps to the memory of `rec`.
///
/// Errors: `Error::Input` naming `Setting::SeqLen` if not even one sequence can be bound, and `Setting::Memory` if nothing fits.
pub fn plan(config: &ModelConfig, runs: &[&QuantizeOptions], rec: &Recorder) -> Result<Plan> {
    let on_cpu = matches!(rec.device(), Device::Cpu);
    let beside = rec.memory().beside;
    let load = Load { config, runs, on_cpu, beside, fast: rec.device().precision() == Precision::Fast };
    let quick = load.fast && matches!(rec.device(), Device::Gpu(gpu) if !gpu.is_software());
    load.check_bindings(rec.device())?;
    let seq_len = load.options().seq_len;
    let most = sequences_per_chunk(config, rec, seq_len)?;
    let [device_limit, host_limit] = [rec.memory().device, rec.memory().host].map(|limit| limit.unwrap_or(u64::MAX));
    let fits = |plan: &Plan| plan.device_bytes <= device_limit && plan.host_bytes <= host_limit;
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
    let with_spare = |plan: Plan| {
        let spare_bytes = if on_cpu { MOST_FREE.min(device_limit - plan.device_bytes) } else { 0 };
        Plan { spare_bytes, device_bytes: plan.device_bytes + spare_bytes, ..plan }
    };
    let mut wanted = places.flat_map(|place| sizes().filter(worthwhile).map(move |size| (place, size)));
    let fitting = wanted.find_map(|(place, size)| Some(load.plan(place, size)).filter(fits));
    // Keeping takes less of the device than computing again.
    let last = (below[below.len() - 1], rec.memory().recompute.unwrap_or(false));
    let smaller = || sizes().map(|size| load.plan(last, size)).find(fits);
    fitting.or_else(smaller).map(with_spare).ok_or_else(|| {
        let least = load.plan(last, 1).device_bytes;
        Error::input(
            Setting::Memory,
            format!("{} MB", device_limit / 1_000_000),
            format!(
                "at least {} MB, for the program, the weights and statistics of one group and one sequence",
                least.div_ceil(1_000_000)
            ),
            phrase!["allow more, or use shorter sequences (", Setting::SeqLen, ")"],
        )
    })
}

/// How many chunks of that many tokens each, before any block, take no more than the weights of a group; at least one.
pub(super) fn chunks_before_blocks(config: &ModelConfig, chunk_tokens: usize) -> usize {
    let groups = config.distinct_blocks().flat_map(Block::groups);
    let weights: usize = groups.map(elements).max().unwrap_or(0);
    (weights / (chunk_tokens * config.hidden_size)).max(1)
}

/// The plan of one run for which there is memory enough.
pub fn roomy_plan(config: &ModelConfig, options: &QuantizeOptions) -> Plan {
    let per_chunk = (Memory::default().chunk_tokens / options.seq_len).max(1);
    Load { config, runs: &[options], on_cpu: false, beside: 0, fast: false }.plan((Place::Device, false), per_chunk)
}

/// The largest array of a run, in bytes: what the device must be able to bind.
///
/// A weight, H of the widest group, or one sequence's widest activation; longer things are cut into pieces. AWQ and QuIP unpack H
/// and need twice as much for it.
pub fn largest_array(config: &ModelConfig, seq_len: usize) -> u64 {
    let linears = || config.distinct_blocks().flat_map(Block::groups).flatten();
    let weights = linears().map(|linear| linear.rows as u64 * linear.columns as u64);
    let hessians = linears().map(|linear| packed_len(linear.columns) as u64);
    let activation = seq_len as u64 * config.widest() as u64;
    weights.chain(hessians).chain([activation]).max().unwrap_or(0) * 4
}

/// Elements of the weights of linear layers.
fn elements(group: &[Linear]) -> usize {
    group.iter().map(|linear| linear.rows * linear.columns).sum()
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

/// A group of linear layers by its extents.
struct Extents {
    /// Inputs.
    n: u64,
    /// Outputs of all of them.
    rows: u64,
    /// Outputs of the largest.
    largest: u64,
    /// Elements of the weights of the next group.
    next: u64,
    /// Outputs of earlier linear layers that chunks go through again on the way here.
    made: u64,
    /// Elements of the weights of such layers, kept since they were quantized.
    earlier: u64,
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
        let stream_bytes = 4 * (1 + self.runs.len() as u64) * tokens * self.kept_columns(recompute);
        match streams {
            Place::Device => plan.device_bytes = stream_bytes,
            Place::Host => plan.host_bytes = stream_bytes,
            Place::File => plan.file_bytes = stream_bytes,
        }
        let arrays = 4 * self.transient(chunk, recompute);
        // Before a block is handed over, its layers are there as they are stored, as the stream saw them, and as a record.
        let handed_over = 12 * self.config.largest_block() as u64;
        // A GPU's buffers come in sizes an eighth apart.
        let arrays = arrays + if self.on_cpu { self.beside + handed_over } else { arrays / 8 };
        plan.device_bytes += arrays;
        plan
    }

    /// Errors: `Error::Input` naming `Setting::Device` if that cannot bind a weight, or H as the methods need it.
    fn check_bindings(&self, device: &Device) -> Result<()> {
        let linears: Vec<&Linear> = self.config.distinct_blocks().flat_map(Block::groups).flatten().collect();
        let weights = linears.iter().map(|spec| spec.rows as u64 * spec.columns as u64);
        let dense = self.runs.iter().any(|run| run.method.quantizer().needs().hessian == Some(HessianForm::Dense));
        let hessians = linears.iter().map(|spec| match dense {
            true => (spec.columns as u64).pow(2),
            false => packed_len(spec.columns) as u64,
        });
        let (needed, bound) = (4 * weights.chain(hessians).max().unwrap_or(0), device.largest_array());
        if needed <= bound {
            return Ok(());
        }
        let found = format!("{}, which can bind {bound} bytes at a time", device.name());
        let expected = format!("at least {needed}, for the widest layer's weight or its Hessian");
        let remedy = phrase!["use another device, or ", Setting::Device.set_to("cpu")];
        Err(Error::input(Setting::Device, found, expected, remedy))
    }

    /// Columns of what a stream keeps of a token between two groups at most.
    fn kept_columns(&self, recompute: bool) -> u64 {
        self.config.distinct_blocks().map(|block| block.kept_columns(recompute)).max().unwrap_or(0) as u64
    }

    /// Elements that the most demanding moment of any group takes, with `chunk` tokens in hand.
    fn transient(&self, chunk: u64, recompute: bool) -> u64 {
        let first = self.config.distinct_blocks().filter_map(|block| block.groups().next());
        let first = first.map(elements).max().unwrap_or(0);
        let groups = self.config.distinct_blocks().flat_map(|block| extents(block, recompute, first));
        let head = self.config.head_linear();
        let (n, rows) = (head.columns as u64, head.rows as u64);
        let head = Extents { n, rows, largest: rows, next: 0, made: 0, earlier: 0 };
        let head = self.runs.iter().any(|run| run.lm_head).then_some(head);
        groups.chain(head).map(|group| self.group(&group, chunk)).max().unwrap_or(0)
    }

    fn group(&self, group: &Extents, chunk: u64) -> u64 {
        let Extents { n, rows, largest, next, made, earlier } = *group;
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
        let widest = self.config.widest() as u64;
        let forward = runs * weights + chunk * (2 * n + 2 * rows + 2 * self.config.hidden_size as u64 + widest);
        // A GPU gets the weights of the next group while it computes.
        let forward = forward + if self.on_cpu { 0 } else { next };
        // Earlier layers that are run through again, in all streams, their outputs, and what they read.
        let making =
            (runs + 1) * earlier + chunk * (made + if made == 0 { 0 } else { 2 * self.config.hidden_size as u64 });
        // Both operands of a product in planes of f16.
        let planes = if self.fast { 2 * (PLANES / 4).min((chunk * rows.max(n)).max(linear)) } else { 0 };
        weights + (quantizing.max().unwrap_or(0) + others).max(forward) + making + planes
    }
}

/// The groups of a block. `first`: elements of the weights of the first group of the next block.
fn extents(block: &Block, recompute: bool, first: usize) -> Vec<Extents> {
    let cuts = block.cuts(recompute);
    let again = |node: usize| cuts.iter().any(|cut| cut.remade.contains(&node));
    let group = |(index, cut): (usize, &Cut)| {
        let group = block.group(cut.node);
        let rows = || group.iter().map(|linear| linear.rows as u64);
        let made = cut.remade.iter().flat_map(|&node| block.group(node)).map(|linear| linear.rows as u64).sum();
        let earlier = cuts[..index].iter().filter(|cut| again(cut.node)).map(|cut| elements(block.group(cut.node)));
        let next = match block.group(cuts[index + 1].node) {
            [] => first,
            group => elements(group),
        };
        Extents {
            n: group[0].columns as u64,
            rows: rows().sum(),
            largest: rows().max().unwrap_or(0),
            next: next as u64,
            made,
            earlier: earlier.sum::<usize>() as u64,
        }
    };
    cuts[..cuts.len() - 1].iter().enumerate().map(group).collect()
}
