// The Kullback–Leibler divergence of two models over a vocabulary that comes in slabs (src/ops/kl.rs). The kernel adds one slab
// of logits to the running state of each token. The state is (maximum of p, Σ exp(p − maximum), Σ exp(p − maximum)·(p − q)),
// where p are the logits of the reference and q those of the other model. One workgroup per token.
#import group

const LANES = 256u;

struct Params {
    // Number of tokens, and number of vocabulary entries in the slab.
    tokens: u32,
    entries: u32,
    // Number of workgroups along x. The tokens are spread over two axes.
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// Logits: [tokens, entries]. State: [tokens, 3].
@group(0) @binding(1) var<storage, read> p_logits: array<f32>;
@group(0) @binding(2) var<storage, read> q_logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> state: array<f32>;

// The maximum of an empty state. It is below every logit.
const SENTINEL = -1.0e30;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, at: Invocation) {
    let lane = at.lane;
    let token = group.y * p.stride + group.x;
    if token >= p.tokens {
        return;
    }
    let start = token * p.entries;
    // Only lane 0 reads and writes the state.
    var before = vec3<f32>(SENTINEL, 0.0, 0.0);
    if lane == 0u {
        before = vec3<f32>(state[token * 3u], state[token * 3u + 1u], state[token * 3u + 2u]);
    }
    var peak = before.x;
    for (var i = lane; i < p.entries; i += LANES) {
        peak = max(peak, p_logits[start + i]);
    }
    peak = group_max(at, peak);
    var sum = 0.0;
    var weighted = 0.0;
    for (var i = lane; i < p.entries; i += LANES) {
        let logit = p_logits[start + i];
        let weight = exp(logit - peak);
        sum += weight;
        weighted += weight * (logit - q_logits[start + i]);
    }
    sum = group_sum(at, sum);
    weighted = group_sum(at, weighted);
    if lane == 0u {
        let kept = exp(before.x - peak);
        state[token * 3u] = peak;
        state[token * 3u + 1u] = before.y * kept + sum;
        state[token * 3u + 2u] = before.z * kept + weighted;
    }
}
