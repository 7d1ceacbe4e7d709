// The least-squares fit of the scale of one group to its codes (src/ops/refit.rs). In coordinate descent, it follows the moves of
// the codes of the group. The new scale minimises the loss e·(H + λI)·eᵀ of its row while everything else stays.
//
// Here e is the error of the whole row. Let ŵ be s·(q − z) in the group and 0 outside it. The minimum is at
// s + s·⟨ŵ, e·(H + λI)⟩ / ⟨ŵ, ŵ·(H + λI)⟩. One invocation per row.
#import half

struct Params {
    m: u32,
    // First column of the group, and number of its columns.
    start: u32,
    count: u32,
    // Index of the group in its row, and number of groups per row.
    group: u32,
    groups: u32,
    // 1 if scales are rounded to f16.
    half: u32,
    // λ.
    ridge: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// The weight W*, [n, m]; g = H·E on the columns of the group, [count, m]; v = H·Ŵ, [n, m]; the codes, [n, m]; the zero points,
// [m, groups]. The first axis of all but the zero points runs over the columns of the weight.
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
@group(0) @binding(5) var<storage, read> zeros: array<f32>;
// The scales, [m, groups], and the errors e, [n, m].
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
    // The row keeps its scale if all its levels in the group are 0, or if the minimum is not at a positive scale.
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
