// The column loop of GPTQ within one block (src/ops/gptq.rs). For each column c in order: t_c += Σ_{j<c} Rn[j, c]·d_j over the
// columns j of the block, then ŵ_c is t_c rounded to its grid, and d_c = w_c − ŵ_c. Rn is the normalised Cholesky factor of the
// damped hessian. QuIP's LDLQ is the same loop.
//
// With UPDATE, nothing is rounded and ŵ_c = t_c. The result is the weight as GPTQ has updated it when it reaches the block. The
// grid of a group is then chosen from these updated weights. One invocation per row.
#import quantizer
#import walk

struct Params {
    m: u32,
    // First column of the block, in processing order, and number of its columns.
    start: u32,
    count: u32,
    groups: u32,
    // The largest code, 2^b − 1.
    top: f32,
    // 1 if the grid has offsets instead of zero points.
    offsets: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// The weight W*, [n, m]; t without the terms of this block, [count, m]; Rn, [start + count, count]. The first axis of w and t
// runs over the columns of the weight, in processing order.
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> t: array<f32>;
@group(0) @binding(3) var<storage, read> columns: array<f32>;
#ifdef UPDATE
// Both are [count, m].
@group(0) @binding(4) var<storage, read_write> d: array<f32>;
@group(0) @binding(5) var<storage, read_write> updated: array<f32>;
#else
// Scales, and zero points or offsets, [m, groups]; the group of each processed column, [n]; d and the codes, [n, m].
@group(0) @binding(4) var<storage, read> scales: array<f32>;
@group(0) @binding(5) var<storage, read> zeros: array<f32>;
@group(0) @binding(6) var<storage, read> group_of: array<u32>;
@group(0) @binding(7) var<storage, read_write> d: array<f32>;
@group(0) @binding(8) var<storage, read_write> codes: array<u32>;
#endif

var<private> row: u32;

// Returns the index of d_c of this row.
fn place(c: u32) -> u32 {
#ifdef UPDATE
    return c * p.m + row;
#else
    return (p.start + c) * p.m + row;
#endif
}

// The four functions that the column loop calls; see shared/walk.wgsl.
fn finished_value(c: u32) -> f32 {
    return d[place(c)];
}

fn coefficient(j: u32, c: u32) -> f32 {
    if j >= p.count || c >= p.count {
        return 0.0;
    }
    return columns[(p.start + j) * p.count + c];
}

fn target_weight(c: u32) -> f32 {
    return t[min(c, p.count - 1u) * p.m + min(row, p.m - 1u)];
}

// Rounds column c of the block. `value` is the complete t_c. Stores d_c and returns it.
fn finish_column(c: u32, value: f32) -> f32 {
    if c >= p.count || row >= p.m {
        return 0.0;
    }
    let column = p.start + c;
#ifdef UPDATE
    updated[place(c)] = value;
    let error = w[column * p.m + row] - value;
#else
    let at = row * p.groups + group_of[column];
    let grid = cell(scales[at], zeros[at], p.offsets);
    let code = code_of(value, 1.0 / grid.scale, grid, p.top);
    codes[place(c)] = u32(code);
    let error = w[column * p.m + row] - value_of(code, grid);
#endif
    d[place(c)] = error;
    return error;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    row = group.x * LANES + lane;
    walk(lane);
}
