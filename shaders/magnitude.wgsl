// Sums of the magnitudes of each input channel, which AWQ derives its scales from (src/ops/magnitude.rs):
// sums[i] += Σ |x[t, i]| over the tokens first..last, with x [tokens, n]. A workgroup handles 32 channels, with 8 invocations
// per channel.

struct Params {
    n: u32,
    first: u32,
    last: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

const CHANNELS = 32u;
// Number of invocations that share a channel.
const SHARERS = 8u;
var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let channel = group.x * CHANNELS + lane % CHANNELS;
    var sum = 0.0;
    if channel < p.n {
        for (var token = p.first + lane / CHANNELS; token < p.last; token += SHARERS) {
            sum += abs(x[token * p.n + channel]);
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if lane < CHANNELS && channel < p.n {
        var total = sums[channel];
        for (var i = 0u; i < SHARERS; i += 1u) {
            total += partial[i * CHANNELS + lane];
        }
        sums[channel] = total;
    }
}
