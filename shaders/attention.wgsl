// Causal grouped-query attention with an online softmax, for src/ops/attention.rs. One workgroup computes a tile of 64 queries
// of one head of one sequence.
//
// The workgroup has 16×16 invocations. Invocation (x, y) owns the queries 4y…4y+3 of the tile. The loop runs over tiles of 64
// keys. For each tile, the invocation computes the scores of its queries against the keys 4x…4x+3. It then adds P·V to the
// output columns 4x…4x+3 of each slab of 64 columns, where P holds the exponentials of the scores. Both products pass 16 depths
// at a time through workgroup memory, as in matmul.wgsl. The output is held in registers. The variants DIM_64, DIM_128 and
// DIM_256 have enough slabs for a head_dim up to that number. A wider head is divided into parts of 256 output columns. Each part
// has a workgroup, which computes the scores over the whole head.
#import tanh

struct Params {
    // Number of workgroups that have work.
    count: u32,
    // Number of workgroups along x. The workgroups are spread over two axes.
    stride: u32,
    // Number of parts per head.
    parts: u32,
    // Number of query tiles per sequence.
    tiles: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // Number of queries per sequence.
    seq_len: u32,
    // Position of the first query of a sequence. The keys of a sequence start at position 0.
    first: u32,
    // Number of rows of K and V per sequence. The kernel reads those of the positions before `first + seq_len`.
    capacity: u32,
    // The largest number of keys that a query sees, including its own.
    window: u32,
    // Factor of the scores.
    scale: f32,
    // Bound of the scaled scores. 0: they have none.
    softcap: f32,
    // Factor of the ALiBi slopes. 0: nothing is added to the scores.
    alibi: f32,
    // The largest power of two that is not above `heads`.
    regular: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

#ifdef DIM_64
const SLABS = 1u;
#endif
#ifdef DIM_128
const SLABS = 2u;
#endif
#ifdef DIM_256
const SLABS = 4u;
#endif
const TILE = 64u;
const DEPTH = 16u;
// The score of a key that a query does not see. It stays finite when the exponential multiplies it by log₂e.
const HIDDEN = -1.0e30;

// [depth][quad of queries]: Q or P. Between the products, `row_max` and `row_sum` use it to exchange values.
var<workgroup> left: array<vec4<f32>, 256>;
// [depth][quad of keys, or of output columns]: K or V.
var<workgroup> right: array<vec4<f32>, 256>;

// Element `depth` of row `row` of Q in one head. The first row of the sequence starts at `base`. Returns 0 outside the matrix.
fn load_q(base: u32, row: u32, depth: u32) -> f32 {
    if row >= p.seq_len || depth >= p.head_dim {
        return 0.0;
    }
    return q[base + row * p.heads * p.head_dim + depth];
}

// As load_q, for the key at `position`.
fn load_k(base: u32, position: u32, depth: u32) -> f32 {
    if position >= p.first + p.seq_len || depth >= p.head_dim {
        return 0.0;
    }
    return k[base + position * p.kv_heads * p.head_dim + depth];
}

// As load_q, for the value at `position`.
fn load_v(base: u32, position: u32, depth: u32) -> f32 {
    if position >= p.first + p.seq_len || depth >= p.head_dim {
        return 0.0;
    }
    return v[base + position * p.kv_heads * p.head_dim + depth];
}

fn largest(a: vec4<f32>) -> f32 {
    return max(max(a.x, a.y), max(a.z, a.w));
}

fn total(a: vec4<f32>) -> f32 {
    return a.x + a.y + a.z + a.w;
}

// The part of the problem that an invocation works on.
struct Place {
    // Index of the first query of the tile within its sequence.
    first: u32,
    // Index of the first element of the head in the first row of the sequence: in Q and the output, and in K and V.
    q_base: u32,
    kv_base: u32,
    // The first output column of the part.
    column: u32,
    // What ALiBi adds to a score for each position between the key and the query, times −1.
    slope: f32,
    // Position of the invocation in the 16×16 workgroup.
    x: u32,
    y: u32,
}

// The ALiBi slope of a head, times the factor. The first `regular` heads have the powers 2^(−8/regular), 2^(−16/regular), …; the
// others have the powers that lie between these.
fn slope(head: u32) -> f32 {
    let index = select(2u * (head - p.regular) + 1u, 2u * (head + 1u), head < p.regular);
    return p.alibi * exp2(-4.0 * f32(index) / f32(p.regular));
}

// Makes scores of the products of a query with four keys from `key` on: scaled, bounded, and with the ALiBi term. Keys that the
// query does not see get HIDDEN.
fn finish(at: Place, product: vec4<f32>, query: u32, key: u32) -> vec4<f32> {
    let keys = vec4<u32>(key, key + 1u, key + 2u, key + 3u);
    let visible = (keys <= vec4<u32>(query)) & (keys + p.window > vec4<u32>(query));
    var score = product * p.scale;
    if p.softcap > 0.0 {
        let x = score / p.softcap;
        score = p.softcap * vec4<f32>(bounded_tanh(x.x), bounded_tanh(x.y), bounded_tanh(x.z), bounded_tanh(x.w));
    }
    if p.alibi != 0.0 {
        score += at.slope * (vec4<f32>(keys) - f32(query));
    }
    return select(vec4<f32>(HIDDEN), score, visible);
}

// Returns the scores of the invocation's four queries (the elements of the array) against its four keys (the components of the
// vectors), for the tile of keys that starts at `key`.
fn scores(at: Place, key: u32) -> array<vec4<f32>, 4> {
    var s: array<vec4<f32>, 4>;
    for (var d = 0u; d < p.head_dim; d += DEPTH) {
        // Neighbouring lanes fetch neighbouring depths, which are neighbours in memory.
        let i = at.first + at.y * 4u;
        let j = key + at.y * 4u;
        let e = d + at.x;
        left[at.x * 16u + at.y] = vec4<f32>(
            load_q(at.q_base, i, e),
            load_q(at.q_base, i + 1u, e),
            load_q(at.q_base, i + 2u, e),
            load_q(at.q_base, i + 3u, e),
        );
        right[at.x * 16u + at.y] = vec4<f32>(
            load_k(at.kv_base, j, e),
            load_k(at.kv_base, j + 1u, e),
            load_k(at.kv_base, j + 2u, e),
            load_k(at.kv_base, j + 3u, e),
        );
        workgroupBarrier();
        for (var depth = 0u; depth < DEPTH; depth += 1u) {
            let qs = left[depth * 16u + at.y];
            let ks = right[depth * 16u + at.x];
            s[0] += qs.x * ks;
            s[1] += qs.y * ks;
            s[2] += qs.z * ks;
            s[3] += qs.w * ks;
        }
        workgroupBarrier();
    }
    let query = p.first + at.first + at.y * 4u;
    s[0] = finish(at, s[0], query, key + at.x * 4u);
    s[1] = finish(at, s[1], query + 1u, key + at.x * 4u);
    s[2] = finish(at, s[2], query + 2u, key + at.x * 4u);
    s[3] = finish(at, s[3], query + 3u, key + at.x * 4u);
    return s;
}

// Returns the maximum of `values` over the 16 invocations that share the same queries.
fn row_max(at: Place, values: vec4<f32>) -> vec4<f32> {
    left[at.y * 16u + at.x] = values;
    workgroupBarrier();
    var result = values;
    for (var other = 0u; other < 16u; other += 1u) {
        result = max(result, left[at.y * 16u + other]);
    }
    workgroupBarrier();
    return result;
}

// Returns the sum of `values` over the 16 invocations that share the same queries.
fn row_sum(at: Place, values: vec4<f32>) -> vec4<f32> {
    left[at.y * 16u + at.x] = values;
    workgroupBarrier();
    var result = vec4<f32>(0.0);
    for (var other = 0u; other < 16u; other += 1u) {
        result += left[at.y * 16u + other];
    }
    workgroupBarrier();
    return result;
}

// Copies P for the 16 keys of part number `part` of the tile to `left`. Of the 16 invocations with the same queries, 4 hold
// these keys, and only they write.
fn share_weights(at: Place, part: u32, s: array<vec4<f32>, 4>) {
    if at.x / 4u == part {
        let depth = at.x % 4u * 4u;
        left[depth * 16u + at.y] = vec4<f32>(s[0].x, s[1].x, s[2].x, s[3].x);
        left[(depth + 1u) * 16u + at.y] = vec4<f32>(s[0].y, s[1].y, s[2].y, s[3].y);
        left[(depth + 2u) * 16u + at.y] = vec4<f32>(s[0].z, s[1].z, s[2].z, s[3].z);
        left[(depth + 3u) * 16u + at.y] = vec4<f32>(s[0].w, s[1].w, s[2].w, s[3].w);
    }
}

// Copies V for the 16 keys from `key` on, in the columns of `slab`, to `right`.
fn share_values(at: Place, key: u32, slab: u32) {
    let j = key + at.y;
    let e = at.column + slab * TILE + at.x * 4u;
    right[at.y * 16u + at.x] = vec4<f32>(
        load_v(at.kv_base, j, e),
        load_v(at.kv_base, j, e + 1u),
        load_v(at.kv_base, j, e + 2u),
        load_v(at.kv_base, j, e + 3u),
    );
}

// Writes four output columns of query `row` (of 4) of the invocation.
fn store(at: Place, row: u32, slab: u32, values: vec4<f32>) {
    let query = at.first + at.y * 4u + row;
    for (var j = 0u; j < 4u; j += 1u) {
        let column = at.column + slab * TILE + at.x * 4u + j;
        if query < p.seq_len && column < p.head_dim {
            out[at.q_base + query * p.heads * p.head_dim + column] = values[j];
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * p.stride + group.x;
    if index >= p.count {
        return;
    }
    let column = index % p.parts * TILE * SLABS;
    let tile = index / p.parts;
    let first = tile % p.tiles * TILE;
    let head = tile / p.tiles % p.heads;
    let sequence = tile / p.tiles / p.heads;
    let kv_head = head / (p.heads / p.kv_heads);
    let q_base = (sequence * p.seq_len * p.heads + head) * p.head_dim;
    let kv_base = (sequence * p.capacity * p.kv_heads + kv_head) * p.head_dim;
    let at = Place(first, q_base, kv_base, column, slope(head), lane % 16u, lane / 16u);

    var output: array<vec4<f32>, 4u * SLABS>;
    // For each query: the largest score so far, and the part of Σ exp(score − largest) that belongs to this invocation's keys.
    var peak = vec4<f32>(HIDDEN);
    var sums = vec4<f32>(0.0);
    let end = p.first + min(first + TILE, p.seq_len);
    for (var key = max(p.first + first + 1u, p.window) - p.window; key < end; key += TILE) {
        var s = scores(at, key);
        let before = peak;
        peak = max(peak, row_max(at, vec4<f32>(largest(s[0]), largest(s[1]), largest(s[2]), largest(s[3]))));
        s[0] = exp(s[0] - peak.x);
        s[1] = exp(s[1] - peak.y);
        s[2] = exp(s[2] - peak.z);
        s[3] = exp(s[3] - peak.w);
        let decay = exp(before - peak);
        sums = sums * decay + vec4<f32>(total(s[0]), total(s[1]), total(s[2]), total(s[3]));
        for (var slab = 0u; slab < SLABS; slab += 1u) {
            output[slab * 4u] *= decay.x;
            output[slab * 4u + 1u] *= decay.y;
            output[slab * 4u + 2u] *= decay.z;
            output[slab * 4u + 3u] *= decay.w;
        }
        for (var part = 0u; part < TILE / DEPTH && key + part * DEPTH < end; part += 1u) {
            share_weights(at, part, s);
            for (var slab = 0u; slab < SLABS; slab += 1u) {
                share_values(at, key + part * DEPTH, slab);
                workgroupBarrier();
                for (var depth = 0u; depth < DEPTH; depth += 1u) {
                    let ps = left[depth * 16u + at.y];
                    let vs = right[depth * 16u + at.x];
                    output[slab * 4u] += ps.x * vs;
                    output[slab * 4u + 1u] += ps.y * vs;
                    output[slab * 4u + 2u] += ps.z * vs;
                    output[slab * 4u + 3u] += ps.w * vs;
                }
                workgroupBarrier();
            }
        }
    }
    sums = row_sum(at, sums);
    for (var slab = 0u; slab < SLABS; slab += 1u) {
        store(at, 0u, slab, output[slab * 4u] / sums.x);
        store(at, 1u, slab, output[slab * 4u + 1u] / sums.y);
        store(at, 2u, slab, output[slab * 4u + 2u] / sums.z);
        store(at, 3u, slab, output[slab * 4u + 3u] / sums.w);
    }
}
