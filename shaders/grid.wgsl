// The choice of scales and zero points (src/ops/grid.rs). One workgroup handles one group of one row.
//
// The search compares 80 candidates, each the range of the weights shrunk by a factor. Each lane computes the loss of one
// candidate. All lanes go through the group together, from workgroup memory, so that no sum needs a reduction. The loss is
// Σ|w − ŵ|^2.4, or with WEIGHTED Σ weight_j·(w − ŵ)². Without a search, the range is given in percent.
#import half
#import quantizer

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
    // 1 for the range ±max|w|, 0 for the range [min, max].
    symmetric: u32,
    // 1 if scales are rounded to f16.
    half: u32,
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
// Number of weights of the group in workgroup memory at a time.
const CHUNK = 512u;
var<workgroup> lows: array<f32, LANES>;
var<workgroup> highs: array<f32, LANES>;
var<workgroup> losses: array<f32, LANES>;
var<workgroup> chunk: array<f32, CHUNK>;

// Returns the scale and the zero point for candidate number i: `range` shrunk to `percent` − i percent.
fn quantizer(range: vec2<f32>, i: u32) -> vec2<f32> {
    let shrunk = range * (f32(p.percent - i) / 100.0);
    let width = shrunk.y - shrunk.x;
    var scale = max(width / p.top, 1.17549435e-38);
    // If s is not rounded, z is computed without s. This keeps exact halves exact, as for the range [−1, 1].
    var zero = (0.0 - shrunk.x) / width * p.top;
    if p.half == 1u {
        scale = to_half(scale);
        zero = (0.0 - shrunk.x) / scale;
    }
    return vec2<f32>(scale, select(clamp(round(zero), 0.0, p.top), (p.top + 1.0) / 2.0, p.symmetric == 1u));
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
    if range.x == 0.0 && range.y == 0.0 {
        range = vec2<f32>(-1.0, 1.0);
    }
    if p.symmetric == 1u {
        let most = max(-range.x, range.y);
        range = vec2<f32>(-most, most);
    }
    var best = 0u;
    if p.factors > 1u {
        let candidate = quantizer(range, min(lane, p.factors - 1u));
        let inverse = 1.0 / candidate.x;
        var loss = 0.0;
        for (var start = 0u; start < length; start += CHUNK) {
            for (var i = lane; i < CHUNK; i += LANES) {
                // Every grid contains zero, so the padding adds no loss.
                chunk[i] = select(0.0, w[first + min(start + i, length - 1u)], start + i < length);
            }
            workgroupBarrier();
            for (var i = 0u; i < min(CHUNK, length - start); i += 1u) {
                let error = abs(chunk[i] - candidate.x * level(chunk[i], inverse, candidate.y, p.top));
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
