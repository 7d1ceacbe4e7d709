// The negative log-likelihood over a vocabulary that comes in slabs (src/ops/nll.rs). The kernel adds one slab of logits to the
// running state of each token. The state is (maximum, Σ exp(logit − maximum), logit of the target, vocabulary entry of the
// maximum). One workgroup per token.
#import group

const LANES = 256u;

struct Params {
    // Number of tokens, and number of vocabulary entries in the slab.
    tokens: u32,
    entries: u32,
    // Vocabulary entry of the first column of the slab.
    first: u32,
    // Number of workgroups along x. The tokens are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// Logits: [tokens, entries]. Targets: [tokens]. State: [tokens, 4].
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>;

// The maximum of an empty state. It is below every logit.
const SENTINEL = -1.0e30;

// The place of each value of `group_values`: 0 for the maximum of the state, i + 1 for column i of the slab.
var<workgroup> group_places: array<u32, 256>;

// Returns the first place with the largest value of the workgroup.
fn group_argmax(lane: u32, value: f32, place: u32) -> u32 {
    group_values[lane] = value;
    group_places[lane] = place;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane < width {
            let other = group_values[lane + width];
            let other_place = group_places[lane + width];
            let mine = group_values[lane];
            if other > mine || (other == mine && other_place < group_places[lane]) {
                group_values[lane] = other;
                group_places[lane] = other_place;
            }
        }
        workgroupBarrier();
    }
    let found = group_places[0];
    workgroupBarrier();
    return found;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, at: Invocation) {
    let lane = at.lane;
    let token = group.y * p.stride + group.x;
    if token >= p.tokens {
        return;
    }
    let start = token * p.entries;
    // Only lane 0 reads and writes the state. The maximum of the state takes part in the reduction as a column before all others.
    var before = vec4<f32>(SENTINEL, 0.0, 0.0, 0.0);
    var best = SENTINEL;
    var place = p.entries + 1u;
    if lane == 0u {
        before = state[token];
        best = before.x;
        place = 0u;
    }
    for (var i = lane; i < p.entries; i += LANES) {
        if logits[start + i] > best {
            best = logits[start + i];
            place = i + 1u;
        }
    }
    let found = group_argmax(lane, best, place);
    let peak = group_max(at, best);
    var sum = 0.0;
    for (var i = lane; i < p.entries; i += LANES) {
        sum += exp(logits[start + i] - peak);
    }
    sum = group_sum(at, sum);
    if lane == 0u {
        var after = before;
        after.x = peak;
        after.y = before.y * exp(before.x - peak) + sum;
        let column = targets[token] - p.first;
        if column < p.entries {
            after.z = logits[start + column];
        }
        if found > 0u {
            after.w = f32(p.first + found - 1u);
        }
        state[token] = after;
    }
}
