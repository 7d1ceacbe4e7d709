// The fit of scales and offsets to the weights (src/ops/fit.rs). One workgroup handles one group of one row. It rounds the weights,
// solves for the scale and offset with the least Σ weight_j·(w − ŵ)² for these codes, and repeats this while the loss falls.
#import quantizer
#import stored

struct Params {
    n: u32,
    group_size: u32,
    groups: u32,
    // Number of groups of all rows (rows × groups), and number of workgroups along x.
    count: u32,
    stride: u32,
    rounds: u32,
    // The types to which scales and offsets are rounded; see shared/stored.wgsl.
    scale_type: u32,
    offset_type: u32,
    // The largest code, 2^b − 1, and the largest offset.
    top: f32,
    most: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// w: [m, n]. weights, one per column: [n]. scales and offsets: [m, groups].
@group(0) @binding(1) var<storage, read> w: array<f32>;
#ifdef WEIGHTED
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> offsets: array<f32>;
#else
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> offsets: array<f32>;
#endif

const LANES = 64u;
// Σ over the columns of each lane: the weights, times q, times q², and the loss; times w, and times q·w.
var<workgroup> sums: array<vec4<f32>, LANES>;
var<workgroup> products: array<vec2<f32>, LANES>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * p.stride + group.x;
    if index >= p.count {
        return;
    }
    let column = index % p.groups * p.group_size;
    let first = index / p.groups * p.n + column;
    let length = min(p.group_size, p.n - column);
    var now = vec2<f32>(scales[index], offsets[index]);
    var best = now;
    var least = 3.4e38;
    for (var round = 0u; round < p.rounds; round += 1u) {
        let grid = cell(now.x, now.y, 1u);
        var sum = vec4<f32>(0.0, 0.0, 0.0, 0.0);
        var product = vec2<f32>(0.0, 0.0);
        for (var i = lane; i < length; i += LANES) {
            let code = code_of(w[first + i], 1.0 / now.x, grid, p.top);
            let error = w[first + i] - value_of(code, grid);
#ifdef WEIGHTED
            let weight = weights[column + i];
#else
            let weight = 1.0;
#endif
            sum += weight * vec4<f32>(1.0, code, code * code, error * error);
            product += weight * w[first + i] * vec2<f32>(1.0, code);
        }
        sums[lane] = sum;
        products[lane] = product;
        workgroupBarrier();
        sum = vec4<f32>(0.0, 0.0, 0.0, 0.0);
        product = vec2<f32>(0.0, 0.0);
        for (var i = 0u; i < LANES; i += 1u) {
            sum += sums[i];
            product += products[i];
        }
        workgroupBarrier();
        if sum.w < least {
            least = sum.w;
            best = now;
        }
        let determinant = sum.x * sum.z - sum.y * sum.y;
        let scale = stored((sum.x * product.y - sum.y * product.x) / determinant, p.scale_type);
        // With one code in use, or with a scale that is not positive, the numbers stay.
        if determinant > 1e-6 * sum.x * sum.z && scale > 0.0 {
            now = vec2<f32>(scale, stored(min((product.x - scale * sum.y) / sum.x, p.most), p.offset_type));
        }
    }
    if lane == 0u {
        scales[index] = best.x;
        offsets[index] = best.y;
    }
}
