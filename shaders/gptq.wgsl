// The columns of a block in order: t_c += Σ_{j<c} Rn[j, c]·d_j over the block, then t_c is rounded and d_c = w_c − ŵ_c.
// With UPDATE nothing is rounded: ŵ_c = t_c, the weight as GPTQ has updated it by the time the block is reached.
//
// One invocation per row. Columns go in sub-blocks of 16 whose t is in registers: first what the columns before the
// sub-block add, then the sub-block itself, four columns at a time. Rn comes through workgroup memory.
#import quantizer

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

const LANES = 64u;
// Rows of Rn in workgroup memory, 16 columns each.
const STAGED = 128u;
var<workgroup> coefficients: array<vec4<f32>, 512>;

var<private> row: u32;

// Where d_c of this row is.
fn place(c: u32) -> u32 {
#ifdef UPDATE
    return c * p.m + row;
#else
    return (p.start + c) * p.m + row;
#endif
}

fn coefficient(j: u32, c: u32) -> f32 {
    if j >= p.count || c >= p.count {
        return 0.0;
    }
    return columns[(p.start + j) * p.count + c];
}

// Fetches Rn of the block's rows j0..j0 + 128 and columns c0..c0 + 16.
fn stage(lane: u32, j0: u32, c0: u32) {
    workgroupBarrier();
    for (var i = lane; i < STAGED * 4u; i += LANES) {
        let j = j0 + i / 4u;
        let c = c0 + i % 4u * 4u;
        coefficients[i] = vec4<f32>(coefficient(j, c), coefficient(j, c + 1u), coefficient(j, c + 2u), coefficient(j, c + 3u));
    }
    workgroupBarrier();
}

fn target_weight(c: u32) -> f32 {
    return t[min(c, p.count - 1u) * p.m + min(row, p.m - 1u)];
}

fn target_quad(c: u32) -> vec4<f32> {
    return vec4<f32>(target_weight(c), target_weight(c + 1u), target_weight(c + 2u), target_weight(c + 3u));
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

// Settles the four columns of quad q of the sub-block at c0. The staged rows are those of the sub-block.
fn settle_quad(c0: u32, q: u32, quad: vec4<f32>) -> vec4<f32> {
    let c = c0 + q * 4u;
    let r = q * 16u + q;
    let x = settle(c, quad.x);
    let after_x = quad + x * coefficients[r];
    let y = settle(c + 1u, after_x.y);
    let after_y = after_x + y * coefficients[r + 4u];
    let z = settle(c + 2u, after_y.z);
    let after_z = after_y + z * coefficients[r + 8u];
    return vec4<f32>(x, y, z, settle(c + 3u, after_z.w));
}

// What quad q, settled with errors e, adds to quad `to`.
fn carry(e: vec4<f32>, q: u32, to: u32) -> vec4<f32> {
    let r = q * 16u + to;
    return e.x * coefficients[r] + e.y * coefficients[r + 4u] + e.z * coefficients[r + 8u] + e.w * coefficients[r + 12u];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    row = group.x * LANES + lane;
    for (var c0 = 0u; c0 < p.count; c0 += 16u) {
        var t0 = target_quad(c0);
        var t1 = target_quad(c0 + 4u);
        var t2 = target_quad(c0 + 8u);
        var t3 = target_quad(c0 + 12u);
        for (var j0 = 0u; j0 < c0; j0 += STAGED) {
            stage(lane, j0, c0);
            for (var j = 0u; j < min(STAGED, c0 - j0); j += 1u) {
                var error = 0.0;
                if row < p.m {
                    error = d[place(j0 + j)];
                }
                t0 += error * coefficients[j * 4u];
                t1 += error * coefficients[j * 4u + 1u];
                t2 += error * coefficients[j * 4u + 2u];
                t3 += error * coefficients[j * 4u + 3u];
            }
        }
        stage(lane, c0, c0);
        let e0 = settle_quad(c0, 0u, t0);
        t1 += carry(e0, 0u, 1u);
        let e1 = settle_quad(c0, 1u, t1);
        t2 += carry(e0, 0u, 2u) + carry(e1, 1u, 2u);
        let e2 = settle_quad(c0, 2u, t2);
        t3 += carry(e0, 0u, 3u) + carry(e1, 1u, 3u) + carry(e2, 2u, 3u);
        settle_quad(c0, 3u, t3);
    }
}
