// Partial sums over consecutive chunks of two arrays (src/ops/reduce.rs): Σ a·b, or with DIFFERENCE Σ (a − b)². One workgroup
// per chunk. The host adds the partial sums in f64.
#import group

const LANES = 256u;

struct Params {
    count: u32,
    // Number of elements per chunk.
    chunk: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;

// Number of elements that an invocation sums before it adds the sum to its total. Short sums lose less to rounding.
const RUN = 32u;

fn term(i: u32) -> f32 {
#ifdef DIFFERENCE
    let difference = a[i] - b[i];
    return difference * difference;
#else
    return a[i] * b[i];
#endif
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, at: Invocation) {
    let lane = at.lane;
    let end = min((group.x + 1u) * p.chunk, p.count);
    var total = 0.0;
    for (var start = group.x * p.chunk; start < end; start += RUN * LANES) {
        let run_end = min(start + RUN * LANES, end);
        var sum = 0.0;
        for (var i = start + lane; i < run_end; i += LANES) {
            sum += term(i);
        }
        total += sum;
    }
    total = group_sum(at, total);
    if lane == 0u {
        sums[group.x] = total;
    }
}
