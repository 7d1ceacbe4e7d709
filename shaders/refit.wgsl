// The least-squares fit of the scale of one group, and of its offset if it has one, to its codes (src/ops/refit.rs). In coordinate
// descent, it follows the moves of the codes of the group. The new numbers minimise the loss e·(H + λI)·eᵀ of their row while
// everything else stays.
//
// Here e is the error of the whole row. Let ŵ be the value of the codes in the group and 0 outside it, let 1 be 1 in the group and 0
// outside it, and let A = H + λI. Adding a·ŵ + b·1 to the row costs least if
//     a·⟨ŵ, A·ŵ⟩ + b·⟨ŵ, A·1⟩ = ⟨ŵ, A·e⟩    and    a·⟨ŵ, A·1⟩ + b·⟨1, A·1⟩ = ⟨1, A·e⟩.
// Then the scale is s·(1 + a), and the offset is o·(1 + a) + b. Without offsets, b = 0. With offsets, a = 0 if the two equations are
// nearly the same, as they are if the group has one code. One invocation per row.
#import quantizer
#import stored
#import units

struct Params {
    m: u32,
    // First column of the group, and number of its columns.
    start: u32,
    count: u32,
    // Index of the group in its row, and number of groups per row.
    group: u32,
    groups: u32,
    // The types to which scales and offsets are rounded; see shared/stored.wgsl.
    scale_type: u32,
    offset_type: u32,
    // 1 if the grid has offsets instead of zero points.
    offsets: u32,
    // Number of units per row, 0 if scales have none, and number of groups that share one.
    units: u32,
    per_unit: u32,
    // The least and the greatest number of units of a scale, and the greatest of an offset.
    least: f32,
    most: f32,
    most_offset: f32,
    // λ.
    ridge: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// g = H·E on the columns of the group, [count, m]; v = H·Ŵ, [n, m]; H·1, [n]; the codes, [n, m]. The first axis runs over the
// columns of the weight.
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> ones: array<f32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
// The units of scales, [m, units], then those of offsets.
@group(0) @binding(5) var<storage, read> units: array<f32>;
// The scales, and the zero points or offsets, [m, groups]; the errors e, [n, m].
@group(0) @binding(6) var<storage, read_write> scales: array<f32>;
@group(0) @binding(7) var<storage, read_write> zeros: array<f32>;
@group(0) @binding(8) var<storage, read_write> errors: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= p.m {
        return;
    }
    let at = row * p.groups + p.group;
    let old = cell(scales[at], zeros[at], p.offsets);
    // ⟨ŵ, A·e⟩ and ⟨1, A·e⟩; ⟨ŵ, A·ŵ⟩, ⟨ŵ, A·1⟩ and ⟨1, A·1⟩.
    var slope = vec2<f32>(0.0, 0.0);
    var curvature = vec3<f32>(0.0, 0.0, 0.0);
    for (var c = 0u; c < p.count; c += 1u) {
        let place = (p.start + c) * p.m + row;
        let value = value_of(f32(codes[place]), old);
        let pull = g[c * p.m + row] + p.ridge * errors[place];
        slope += vec2<f32>(value * pull, pull);
        curvature.x += value * (v[place] + p.ridge * value);
        if p.offsets == 1u {
            let one = ones[p.start + c] + p.ridge;
            curvature += vec3<f32>(0.0, value * one, one);
        }
    }
    let determinant = curvature.x * curvature.z - curvature.y * curvature.y;
    var growth = 0.0;
    if p.offsets == 0u {
        growth = slope.x / curvature.x;
    } else if determinant > 1e-6 * curvature.x * curvature.z {
        growth = (slope.x * curvature.z - slope.y * curvature.y) / determinant;
    }
    var scale = old.scale + old.scale * growth;
    // The row keeps its numbers if no loss depends on them, or if the minimum is at a scale of another sign.
    let depends = select(curvature.x, curvature.z, p.offsets == 1u) > 0.0;
    if !(depends && scale * old.scale > 0.0) {
        return;
    }
    var second = zeros[at];
    if p.units > 0u {
        scale = whole(scale, units[row * p.units + p.group / p.per_unit], p.least, p.most);
    } else {
        scale = stored(scale, p.scale_type);
    }
    if p.offsets == 1u {
        // The offset that suits the scale as it is stored.
        growth = scale / old.scale - 1.0;
        second = old.offset + old.offset * growth + (slope.y - growth * curvature.y) / curvature.z;
        if p.units > 0u {
            second = whole_offset(second, units[(p.m + row) * p.units + p.group / p.per_unit], p.most_offset);
        } else {
            second = stored(second, p.offset_type);
        }
    }
    scales[at] = scale;
    zeros[at] = second;
    let fitted = cell(scale, second, p.offsets);
    for (var c = 0u; c < p.count; c += 1u) {
        let place = (p.start + c) * p.m + row;
        let code = f32(codes[place]);
        errors[place] += value_of(code, old) - value_of(code, fitted);
    }
}
