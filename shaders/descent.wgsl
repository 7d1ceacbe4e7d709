// Coordinate descent over the codes of a block, after GPTQ (src/ops/descent.rs). It processes one column after the other. In
// each column, every code moves to the value with the least loss while all other codes stay.
//
// Let e = w − ŵ and g = e·H. The loss of a row is e·(H + λI)·eᵀ. Over ŵ_c alone, it is least if ŵ_c grows by
// (g_c + λ·e_c) / (H_cc + λ). The best level on the grid is the one nearest to this minimum. If e_c grows by x, then g grows by
// x·H[c, ·], and the later columns of the block take this into account. One invocation per row.
#import quantizer
#import walk

struct Params {
    m: u32,
    n: u32,
    // First column of the block, and number of its columns.
    start: u32,
    count: u32,
    group_size: u32,
    groups: u32,
    // The largest code, 2^b − 1.
    top: f32,
    // λ.
    ridge: f32,
    // 1 if the grid has offsets instead of zero points.
    offsets: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// The rows of H that belong to the block, [count, n]; g, [count, m]; scales, and zero points or offsets, [m,
// groups].
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> zeros: array<f32>;
// e and the codes, [n, m], with the columns of the weight along the first axis; the growth of e in this block, [count, m].
@group(0) @binding(5) var<storage, read_write> errors: array<f32>;
@group(0) @binding(6) var<storage, read_write> codes: array<u32>;
@group(0) @binding(7) var<storage, read_write> moves: array<f32>;

var<private> row: u32;

// The four functions that the column loop calls; see shared/walk.wgsl.
fn finished_value(c: u32) -> f32 {
    return moves[c * p.m + row];
}

fn coefficient(j: u32, c: u32) -> f32 {
    if j >= p.count || c >= p.count {
        return 0.0;
    }
    return h[j * p.n + p.start + c];
}

fn target_weight(c: u32) -> f32 {
    return g[min(c, p.count - 1u) * p.m + min(row, p.m - 1u)];
}

// Moves the code of column c of the block. `value` is the complete g_c. Returns the growth of e_c.
fn finish_column(c: u32, value: f32) -> f32 {
    if c >= p.count || row >= p.m {
        return 0.0;
    }
    let column = p.start + c;
    let at = row * p.groups + column / p.group_size;
    let grid = cell(scales[at], zeros[at], p.offsets);
    let place = column * p.m + row;
    let error = errors[place];
    let old = f32(codes[place]);
    let best = (value + p.ridge * error) / (h[c * p.n + column] + p.ridge);
    let code = code_of(value_of(old, grid) + best, 1.0 / grid.scale, grid, p.top);
    let change = grid.scale * (old - code);
    errors[place] = error + change;
    codes[place] = u32(code);
    moves[c * p.m + row] = change;
    return change;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    row = group.x * LANES + lane;
    walk(lane);
}
