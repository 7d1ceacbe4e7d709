// The choice of scales, and of zero points or offsets (src/ops/grid/mod.rs). One workgroup handles one group of one row.
//
// The search compares 80 candidates, each the range of the weights shrunk by a factor. Each lane computes the loss of one
// candidate. All lanes go through the group together, from workgroup memory, so that no sum needs a reduction. The loss is
// Σ|w − ŵ|^2.4, or with WEIGHTED Σ weight_j·(w − ŵ)². Without a search, the range is given in percent.
#import quantizer
#import stored

struct Params {
    n: u32,
    group_size: u32,
    groups: u32,
    // Number of groups of all rows (rows × groups), and number of workgroups along x.
    count: u32,
    stride: u32,
    // Number of candidates: 80 for a search, 1 if the range is given.
    factors: u32,
    // The first candidate, in percent of the range. Each further candidate is one percent smaller.
    percent: u32,
    // What the range is: 0 for [min, max], 1 for ±max|w|. From the extreme w with the largest magnitude to its opposite for 2, and
    // the reverse for 3.
    range: u32,
    // 1 if scales share units. A group of zeros then gets no range. Otherwise it gets [0, 1] with offsets, else [−1, 1].
    units: u32,
    // The zero point if it is fixed.
    zero: f32,
    // 0 for fixed zero points, 1 for zero points of each group, 2 for offsets.
    zeros: u32,
    // The types to which scales and offsets are rounded; see shared/stored.wgsl.
    scale_type: u32,
    offset_type: u32,
    // The largest code, 2^b − 1.
    top: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// w: [m, n]. weights, one per column: [n]. scales and zeros: [m, groups].
@group(0) @binding(1) var<storage, read> w: array<f32>;
#ifdef WEIGHTED
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> zeros: array<f32>;
#else
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> zeros: array<f32>;
#endif

// Number of lanes of the workgroup, one per candidate.
const LANES = 80u;
// The least size of a scale before it is rounded to its type. Many GPUs take much smaller numbers for 0.
const LEAST_SCALE = 1e-30;
// Number of weights of the group in workgroup memory at a time.
const CHUNK = 512u;
var<workgroup> lows: array<f32, LANES>;
var<workgroup> highs: array<f32, LANES>;
var<workgroup> losses: array<f32, LANES>;
var<workgroup> chunk: array<f32, CHUNK>;

// Returns the scale, and the zero point or offset, for candidate number i: `range` shrunk to `percent` − i percent.
fn quantizer(range: vec2<f32>, i: u32) -> vec2<f32> {
    let shrunk = range * (f32(p.percent - i) / 100.0);
    let width = shrunk.y - shrunk.x;
    let size = max(abs(width / p.top), LEAST_SCALE);
    let scale = stored(select(size, -size, width < 0.0), p.scale_type);
    if p.zeros == 0u {
        return vec2<f32>(scale, p.zero);
    }
    if p.zeros == 2u {
        return vec2<f32>(scale, stored(shrunk.x, p.offset_type));
    }
    // If s is not rounded, z is computed without s. This keeps exact halves exact, as for the range [−1, 1].
    var zero = (0.0 - shrunk.x) / width * p.top;
    if p.scale_type != 0u {
        zero = (0.0 - shrunk.x) / scale;
    }
    return vec2<f32>(scale, clamp(round(zero), 0.0, p.top));
}

@compute @workgroup_size(80)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * p.stride + group.x;
    if index >= p.count {
        return;
    }
    let column = index % p.groups * p.group_size;
    let first = index / p.groups * p.n + column;
    let length = min(p.group_size, p.n - column);
    var range = vec2<f32>(0.0, 0.0);
    for (var i = lane; i < length; i += LANES) {
        range = vec2<f32>(min(range.x, w[first + i]), max(range.y, w[first + i]));
    }
    lows[lane] = range.x;
    highs[lane] = range.y;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i += 1u) {
        range = vec2<f32>(min(range.x, lows[i]), max(range.y, highs[i]));
    }
    let most = max(-range.x, range.y);
    let end = select(-most, most, range.y > -range.x);
    if most == 0.0 && p.units == 0u {
        range = vec2<f32>(select(-1.0, 0.0, p.zeros == 2u), 1.0);
    } else if p.range == 1u {
        range = vec2<f32>(-most, most);
    } else if p.range == 2u {
        range = vec2<f32>(end, -end);
    } else if p.range == 3u {
        range = vec2<f32>(-end, end);
    }
    var best = 0u;
    if p.factors > 1u {
        let candidate = quantizer(range, min(lane, p.factors - 1u));
        let inverse = 1.0 / candidate.x;
        let grid = cell(candidate.x, candidate.y, u32(p.zeros == 2u));
        var loss = 0.0;
        for (var start = 0u; start < length; start += CHUNK) {
            for (var i = lane; i < CHUNK; i += LANES) {
                chunk[i] = w[first + min(start + i, length - 1u)];
            }
            workgroupBarrier();
            for (var i = 0u; i < min(CHUNK, length - start); i += 1u) {
                let error = abs(chunk[i] - value_of(code_of(chunk[i], inverse, grid, p.top), grid));
#ifdef WEIGHTED
                loss += weights[column + start + i] * error * error;
#else
                // pow uses log2, which is infinite at zero.
                loss += pow(max(error, 1e-30), 2.4);
#endif
            }
            workgroupBarrier();
        }
        losses[lane] = loss;
        workgroupBarrier();
        for (var i = 1u; i < p.factors; i += 1u) {
            if losses[i] < losses[best] {
                best = i;
            }
        }
    }
    if lane == 0u {
        let found = quantizer(range, best);
        scales[index] = found.x;
        zeros[index] = found.y;
    }
}
