//! Plans the memory of a run before it starts.
//!
//! The device holds the weights of one group of linear layers, the statistics and factors of this group, and the
//! current chunk of tokens. The hidden states of all chunks are on the device, too, if they fit. Otherwise they are in
//! host memory, or in a file. `pipeline` plans each run here, and `study::forecast` makes the same plan to show it
//! before a run. All sizes are estimates from shapes.

use super::Treatment;
use crate::device::{Device, MOST_FREE, Memory, Place, Precision, Recorder};
use crate::engine::network::sequences_per_chunk;
use crate::error::{Setting, phrase};
use crate::family::{Block, Cut, Linear, ModelConfig};
use crate::ops::cooperative::PLANES;
use crate::ops::gram::packed_len;
use crate::quant::QuantizeOptions;
use crate::quant::methods::HessianForm;
use crate::record::Plan;
use crate::{Error, Result};

/// The least number of tokens in a chunk for which hidden states stay in a fast place. Smaller chunks leave a GPU idle,
/// so the plan moves the hidden states to a slower place before it makes chunks smaller than this.
const WORTHWHILE_TOKENS: usize = 1024;

/// Plans `runs` that go through the blocks together, within the memory limits of `rec`. All runs have the same
/// `samples` and `seq_len`.
///
/// The plan is the first that fits: the fastest place for hidden states, then keeping values before computing them
/// again, then the largest chunk.
///
/// Errors: `Error::Input` naming `Setting::Device` if the device cannot bind a weight or a hessian, `Setting::SeqLen`
/// if it cannot bind one sequence, and `Setting::Memory` if no plan fits.
pub fn plan(config: &ModelConfig, runs: &[&QuantizeOptions], rec: &Recorder) -> Result<Plan> {
    let on_cpu = matches!(rec.device(), Device::Cpu);
    let beside = rec.memory().beside;
    let workload = Workload { config, runs, on_cpu, beside, fast: rec.device().precision() == Precision::Fast };
    let quick = workload.fast && matches!(rec.device(), Device::Gpu(gpu) if !gpu.is_software());
    workload.check_bindings(rec.device())?;
    let seq_len = workload.options().seq_len;
    let most = sequences_per_chunk(config, rec, seq_len)?;
    let [device_limit, host_limit] = [rec.memory().device, rec.memory().host].map(|limit| limit.unwrap_or(u64::MAX));
    let fits = |plan: &Plan| plan.device_bytes <= device_limit && plan.host_bytes <= host_limit;
    let sizes = || std::iter::successors(Some(most), |&size| (size > 1).then_some(size / 2));
    let worthwhile = |&size: &usize| size == most || size * seq_len >= WORTHWHILE_TOKENS;
    let keeping = |place: Place| match rec.memory().recompute {
        Some(recompute) => vec![(place, recompute)],
        // For each token of a 7B model, computing the input of the down projection again takes 0.36 Gflop in total
        // (gate and up, twice). Keeping it takes 44 kB, which are written once and read twice. Only a hardware GPU with
        // fast products computes that quickly, so only there the plan tries it before the next slower place.
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
    let fitting = wanted.find_map(|(place, size)| Some(workload.plan(place, size)).filter(fits));
    // In the slowest place, keeping values takes less of the device than computing them again.
    let last = (below[below.len() - 1], rec.memory().recompute.unwrap_or(false));
    let smaller = || sizes().map(|size| workload.plan(last, size)).find(fits);
    fitting.or_else(smaller).map(with_spare).ok_or_else(|| {
        let least = workload.plan(last, 1).device_bytes;
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

/// The number of chunks of `chunk_tokens` tokens that are embedded together before the first block. Their residual
/// streams take no more memory than the weights of the largest group. At least 1.
pub(super) fn chunks_before_blocks(config: &ModelConfig, chunk_tokens: usize) -> usize {
    let groups = config.distinct_blocks().flat_map(Block::groups);
    let weights = groups.map(weight_elements).max().unwrap_or(0);
    (weights / (chunk_tokens as u64 * config.hidden_size as u64)).max(1) as usize
}

/// The plan of one run on a device with enough memory, estimated for a GPU without the fast tier. The page shows it as
/// its estimate of device memory.
pub fn roomy_plan(config: &ModelConfig, options: &QuantizeOptions) -> Plan {
    let per_chunk = (Memory::default().chunk_tokens / options.seq_len).max(1);
    Workload { config, runs: &[options], on_cpu: false, beside: 0, fast: false }.plan((Place::Device, false), per_chunk)
}

/// The size of the largest array of a run in bytes. The device must be able to bind it.
///
/// It is a weight, H of the widest group, or the widest activation of one sequence. Larger arrays are cut into pieces.
/// AWQ and QuIP unpack H to a dense matrix, which takes twice as much.
pub fn largest_array(config: &ModelConfig, seq_len: usize) -> u64 {
    let linears = || config.distinct_blocks().flat_map(Block::groups).flatten();
    let weights = linears().map(Linear::weights);
    let hessians = linears().map(|linear| packed_len(linear.columns) as u64);
    let activation = seq_len as u64 * config.widest() as u64;
    weights.chain(hessians).chain([activation]).max().unwrap_or(0) * 4
}

/// The number of elements in the weights of a group.
fn weight_elements(group: &[Linear]) -> u64 {
    group.iter().map(Linear::weights).sum()
}

/// The runs to plan, with what the estimates depend on.
struct Workload<'a> {
    config: &'a ModelConfig,
    runs: &'a [&'a QuantizeOptions],
    on_cpu: bool,
    /// Bytes that the program uses on the CPU besides arrays.
    beside: u64,
    /// Whether large products use the fast tier.
    fast: bool,
}

/// The sizes of a group of linear layers.
struct GroupExtents {
    /// Inputs n, which all layers of the group share.
    n: u64,
    /// Outputs of all layers together.
    rows: u64,
    /// Outputs of the largest layer.
    largest: u64,
    /// Elements in the weights of the next group.
    next: u64,
    /// Outputs per token of earlier linear layers through which chunks pass again to compute this input.
    made: u64,
    /// Elements in the weights of earlier linear layers of the block through which chunks pass again at some later
    /// stop. They are kept since they were quantized.
    earlier: u64,
}

impl Workload<'_> {
    /// The options of the first run. All runs have the same `samples` and `seq_len`.
    fn options(&self) -> &QuantizeOptions {
        self.runs[0]
    }

    /// The plan with the hidden states at `streams` and chunks of `sequences_per_chunk` sequences. Limits are not
    /// checked.
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
        let arrays = 4 * self.peak_elements(chunk, recompute);
        // Before a block is handed over, its layers exist three times: as stored, as the quantized stream passed
        // through them, and in the record.
        let handed_over = 12 * self.config.largest_block();
        // The sizes of a GPU's buffers are an eighth apart, so a buffer may be larger than its array by that much.
        let arrays = arrays + if self.on_cpu { self.beside + handed_over } else { arrays / 8 };
        plan.device_bytes += arrays;
        plan
    }

    /// Checks that the device can bind every weight, and H in the form that the methods need. Errors: `Error::Input`
    /// naming `Setting::Device`.
    fn check_bindings(&self, device: &Device) -> Result<()> {
        let linears: Vec<&Linear> = self.config.distinct_blocks().flat_map(Block::groups).flatten().collect();
        let weights = linears.iter().map(|linear| linear.weights());
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

    /// The greatest number of columns that a stream keeps per token at any stop.
    fn kept_columns(&self, recompute: bool) -> u64 {
        self.config.distinct_blocks().map(|block| block.kept_columns(recompute)).max().unwrap_or(0) as u64
    }

    /// The number of elements on the device at the peak, without the streams. `chunk`: tokens in a chunk. The peak is
    /// the maximum over all groups, including the output matrix if a run quantizes it.
    fn peak_elements(&self, chunk: u64, recompute: bool) -> u64 {
        let first = self.config.distinct_blocks().filter_map(|block| block.groups().next());
        let first = first.map(weight_elements).max().unwrap_or(0);
        let groups = self.config.distinct_blocks().flat_map(|block| extents(block, recompute, first));
        let head = self.config.head_linear();
        let (n, rows) = (head.columns as u64, head.rows as u64);
        let head = GroupExtents { n, rows, largest: rows, next: 0, made: 0, earlier: 0 };
        let head = self.runs.iter().any(|run| run.lm_head).then_some(head);
        groups.chain(head).map(|group| self.group_elements(&group, chunk)).max().unwrap_or(0)
    }

    /// The number of elements on the device at the peak of one group, with chunks of `chunk` tokens: while a run
    /// quantizes it, or while the streams pass it.
    fn group_elements(&self, group: &GroupExtents, chunk: u64) -> u64 {
        let GroupExtents { n, rows, largest, next, made, earlier } = *group;
        let (square, weights, linear) = (n * n, rows * n, largest * n);
        let runs = self.runs.len() as u64;
        // The weights that the runs before the current one have made of this group.
        let others = (runs - 1) * weights;
        let quantizing = self.runs.iter().map(|options| {
            let correlate = options.alpha.corrects();
            if !Treatment::new(options, self.config).needs_calibration() {
                return 6 * linear + weights;
            }
            let held_out = correlate && options.held_out() > 0;
            let parts = if options.held_out() > 0 { 2 } else { 1 };
            // H as tiles, about half of the square, and D as a full square.
            let statistics = parts * (square / 2 + if correlate { square } else { 0 });
            // X and X̂, and on the CPU their difference.
            let gathering = chunk * n * if self.on_cpu { 3 } else { 2 };
            // The factor of H. On the CPU it is dense while it is computed, and again during the solve.
            let factor = square / 2 + if self.on_cpu { square } else { 0 };
            // With held-out tokens: W·D of every linear layer, and up to 2048 rows of H while a layer is scored.
            let kept = statistics + factor + if held_out { weights + n * n.min(2048) } else { 0 };
            let correcting = if correlate { 3 * weights + 3 * linear } else { weights + linear };
            let rounding = options.method.quantizer().held_elements(n);
            let rounding = rounding + 3 * weights + 10 * linear;
            (statistics + gathering).max(kept + correcting.max(rounding))
        });
        // The inputs of two streams, the outputs of both, and the values that are computed from the outputs.
        let widest = self.config.widest() as u64;
        let forward = runs * weights + chunk * (2 * n + 2 * rows + 2 * self.config.hidden_size as u64 + widest);
        // A GPU loads the weights of the next group while it computes.
        let forward = forward + if self.on_cpu { 0 } else { next };
        // The weights of earlier layers through which chunks pass again, for all streams, with their outputs and their
        // inputs.
        let making =
            (runs + 1) * earlier + chunk * (made + if made == 0 { 0 } else { 2 * self.config.hidden_size as u64 });
        // Both operands of a product, as planes of f16.
        let planes = if self.fast { 2 * (PLANES / 4).min((chunk * rows.max(n)).max(linear)) } else { 0 };
        weights + (quantizing.max().unwrap_or(0) + others).max(forward) + making + planes
    }
}

/// The sizes of the groups of a block. `first`: elements in the weights of the first group of the next block.
fn extents(block: &Block, recompute: bool, first: u64) -> Vec<GroupExtents> {
    let cuts = block.cuts(recompute);
    let again = |node: usize| cuts.iter().any(|cut| cut.remade.contains(&node));
    let group = |(index, cut): (usize, &Cut)| {
        let group = block.group(cut.node);
        let rows = || group.iter().map(|linear| linear.rows as u64);
        let made = cut.remade.iter().flat_map(|&node| block.group(node)).map(|linear| linear.rows as u64).sum();
        let earlier =
            cuts[..index].iter().filter(|cut| again(cut.node)).map(|cut| weight_elements(block.group(cut.node)));
        let next = match block.group(cuts[index + 1].node) {
            [] => first,
            group => weight_elements(group),
        };
        GroupExtents {
            n: group[0].columns as u64,
            rows: rows().sum(),
            largest: rows().max().unwrap_or(0),
            next,
            made,
            earlier: earlier.sum(),
        }
    };
    cuts[..cuts.len() - 1].iter().enumerate().map(group).collect()
}
