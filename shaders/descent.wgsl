// Coordinate descent over the codes of a block: column by column, each code moves to the best one while all others stand.
//
// With e = w − ŵ and g = e·H, the loss e·(H + λI)·eᵀ is least where ŵ_c grows by (g_c + λ·e_c) / (H_cc + λ); the level nearest
// to that is the best one on the grid. A column that moves by x changes g by x·H[c, ·], which the later columns see.
#import quantizer
#import walk

struct Params {
    m: u32,
    n: u32,
    // First column of the block, and number of columns.
    start: u32,
    count: u32,
    group_size: u32,
    groups: u32,
    // 2^b − 1.
    top: f32,
    // λ.
    ridge: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// Rows of H, [count, n]; [count, m], [m, groups] twice.
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> zeros: array<f32>;
// [n, m] twice, [count, m].
@group(0) @binding(5) var<storage, read_write> errors: array<f32>;
@group(0) @binding(6) var<storage, read_write> codes: array<u32>;
@group(0) @binding(7) var<storage, read_write> moves: array<f32>;

var<private> row: u32;

fn settled(c: u32) -> f32 {
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

// Moves column c of the block, whose g is complete, and returns by how much e_c grows.
fn settle(c: u32, value: f32) -> f32 {
    if c >= p.count || row >= p.m {
        return 0.0;
    }
    let column = p.start + c;
    let at = row * p.groups + column / p.group_size;
    let scale = scales[at];
    let zero = zeros[at];
    let place = column * p.m + row;
    let error = errors[place];
    let old = f32(codes[place]) - zero;
    let best = (value + p.ridge * error) / (h[c * p.n + column] + p.ridge);
    let nearest = level(scale * old + best, 1.0 / scale, zero, p.top);
    let change = scale * (old - nearest);
    errors[place] = error + change;
    codes[place] = u32(nearest + zero);
    moves[c * p.m + row] = change;
    return change;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    row = group.x * LANES + lane;
    walk(lane);
}
