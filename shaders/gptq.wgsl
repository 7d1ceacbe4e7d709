// The columns of a block in order: t_c += Σ_{j<c} Rn[j, c]·d_j over the block, then t_c is rounded and d_c = w_c − ŵ_c.
// With UPDATE nothing is rounded: ŵ_c = t_c, the weight as GPTQ has updated it by the time the block is reached.
#import quantizer
#import walk

struct Params {
    m: u32,
    // First column of the block, and number of columns.
    start: u32,
    count: u32,
    groups: u32,
    // 2^b − 1.
    top: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [n, m], [count, m], [start + count, count].
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> t: array<f32>;
@group(0) @binding(3) var<storage, read> columns: array<f32>;
#ifdef UPDATE
// Both [count, m].
@group(0) @binding(4) var<storage, read_write> d: array<f32>;
@group(0) @binding(5) var<storage, read_write> updated: array<f32>;
#else
// [m, groups] twice, [n], [n, m] twice.
@group(0) @binding(4) var<storage, read> scales: array<f32>;
@group(0) @binding(5) var<storage, read> zeros: array<f32>;
@group(0) @binding(6) var<storage, read> group_of: array<u32>;
@group(0) @binding(7) var<storage, read_write> d: array<f32>;
@group(0) @binding(8) var<storage, read_write> codes: array<u32>;
#endif

var<private> row: u32;

// Where d_c of this row is.
fn place(c: u32) -> u32 {
#ifdef UPDATE
    return c * p.m + row;
#else
    return (p.start + c) * p.m + row;
#endif
}

fn settled(c: u32) -> f32 {
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

// Settles column c of the block, whose t is complete, and returns its d.
fn settle(c: u32, value: f32) -> f32 {
    if c >= p.count || row >= p.m {
        return 0.0;
    }
    let column = p.start + c;
#ifdef UPDATE
    updated[place(c)] = value;
    let error = w[column * p.m + row] - value;
#else
    let at = row * p.groups + group_of[column];
    let scale = scales[at];
    let zero = zeros[at];
    let nearest = level(value, 1.0 / scale, zero, p.top);
    codes[place(c)] = u32(nearest + zero);
    let error = w[column * p.m + row] - scale * nearest;
#endif
    d[place(c)] = error;
    return error;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    row = group.x * LANES + lane;
    walk(lane);
}
