// The scale of one group for given codes: the s that makes the loss e·(H + λI)·eᵀ of a row least while all else stands.
//
// With ŵ = s·(q − z) over the group and e = w − ŵ, that is s + s·⟨ŵ, e·(H + λI)⟩ / ⟨ŵ, ŵ·(H + λI)⟩. One invocation per row.
#import half

struct Params {
    m: u32,
    // First column of the group, and number of columns.
    start: u32,
    count: u32,
    group: u32,
    groups: u32,
    // Whether scales are rounded to f16.
    half: u32,
    // λ.
    ridge: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [n, m], [count, m], [n, m] twice, [m, groups].
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
@group(0) @binding(5) var<storage, read> zeros: array<f32>;
// [m, groups], [n, m].
@group(0) @binding(6) var<storage, read_write> scales: array<f32>;
@group(0) @binding(7) var<storage, read_write> errors: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= p.m {
        return;
    }
    let at = row * p.groups + p.group;
    let scale = scales[at];
    let zero = zeros[at];
    var slope = 0.0;
    var curvature = 0.0;
    for (var c = 0u; c < p.count; c += 1u) {
        let place = (p.start + c) * p.m + row;
        let value = scale * (f32(codes[place]) - zero);
        slope += value * (g[c * p.m + row] + p.ridge * errors[place]);
        curvature += value * (v[place] + p.ridge * value);
    }
    var best = scale + scale * (slope / curvature);
    // Not if all levels are 0, or the best scale is none.
    if !(curvature > 0.0 && best > 0.0) {
        return;
    }
    if p.half == 1u {
        best = to_half(best);
    }
    scales[at] = best;
    for (var c = 0u; c < p.count; c += 1u) {
        let place = (p.start + c) * p.m + row;
        errors[place] = w[place] - best * (f32(codes[place]) - zero);
    }
}
