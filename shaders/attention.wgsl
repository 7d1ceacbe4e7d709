// Causal grouped-query attention with an online softmax. One workgroup per sequence, head and tile of 64 queries.
//
// Invocation (x, y) of 16×16 owns queries 4y…4y+3 of the tile. Over tiles of 64 keys it computes their scores against
// keys 4x…4x+3, and adds P·V to their output columns 4x…4x+3 of each slab of 64 columns. Both products run as in
// matmul.wgsl, 16 deep through workgroup memory. Enough slabs for the largest head_dim of a variant live in registers.

struct Params {
    // Workgroups that have work.
    count: u32,
    // Workgroups along x, since they are spread over two axes.
    stride: u32,
    // Query tiles per sequence.
    tiles: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    seq_len: u32,
    // Keys that a query sees at most, its own among them.
    window: u32,
    scale: f32,
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
// The score of a key that a query does not see. Times log₂e it is still finite.
const HIDDEN = -1.0e30;

// [depth][quad of queries]: Q or P. Between the products also what a row's 16 invocations tell each other.
var<workgroup> left: array<vec4<f32>, 256>;
// [depth][quad of keys or columns]: K or V.
var<workgroup> right: array<vec4<f32>, 256>;

// Element `depth` of a head's row at `position`, the rows starting at `base`; 0 outside.
fn load_q(base: u32, position: u32, depth: u32) -> f32 {
    if position >= p.seq_len || depth >= p.head_dim {
        return 0.0;
    }
    return q[base + position * p.heads * p.head_dim + depth];
}

fn load_k(base: u32, position: u32, depth: u32) -> f32 {
    if position >= p.seq_len || depth >= p.head_dim {
        return 0.0;
    }
    return k[base + position * p.kv_heads * p.head_dim + depth];
}

fn load_v(base: u32, position: u32, depth: u32) -> f32 {
    if position >= p.seq_len || depth >= p.head_dim {
        return 0.0;
    }
    return v[base + position * p.kv_heads * p.head_dim + depth];
}

fn largest(a: vec4<f32>) -> f32 {
    return max(max(a.x, a.y), max(a.z, a.w));
}

// The score where the key is visible to the query.
fn mask(score: vec4<f32>, query: u32, key: u32) -> vec4<f32> {
    let keys = vec4<u32>(key, key + 1u, key + 2u, key + 3u);
    let visible = (keys <= vec4<u32>(query)) & (keys + p.window > vec4<u32>(query));
    return select(vec4<f32>(HIDDEN), score * p.scale, visible);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * p.stride + group.x;
    if index >= p.count {
        return;
    }
    let first = index % p.tiles * TILE;
    let head = index / p.tiles % p.heads;
    let start = index / p.tiles / p.heads * p.seq_len;
    let q_base = (start * p.heads + head) * p.head_dim;
    let kv_base = (start * p.kv_heads + head / (p.heads / p.kv_heads)) * p.head_dim;
    let x = lane % 16u;
    let y = lane / 16u;

    var output: array<vec4<f32>, 4u * SLABS>;
    // Per query: the largest score so far, and this invocation's share of Σ exp(score − largest).
    var peak = vec4<f32>(HIDDEN);
    var total = vec4<f32>(0.0);
    let end = min(first + TILE, p.seq_len);
    let begin = max(first + 1u, p.window) - p.window;
    for (var key = begin; key < end; key += TILE) {
        // Scores of 4 queries (the array) against 4 keys (the vectors).
        var s: array<vec4<f32>, 4>;
        for (var d = 0u; d < p.head_dim; d += DEPTH) {
            let i = first + y * 4u;
            let j = key + y * 4u;
            let e = d + x;
            left[x * 16u + y] = vec4<f32>(load_q(q_base, i, e), load_q(q_base, i + 1u, e), load_q(q_base, i + 2u, e), load_q(q_base, i + 3u, e));
            right[x * 16u + y] = vec4<f32>(load_k(kv_base, j, e), load_k(kv_base, j + 1u, e), load_k(kv_base, j + 2u, e), load_k(kv_base, j + 3u, e));
            workgroupBarrier();
            for (var depth = 0u; depth < DEPTH; depth += 1u) {
                let qs = left[depth * 16u + y];
                let ks = right[depth * 16u + x];
                s[0] += qs.x * ks;
                s[1] += qs.y * ks;
                s[2] += qs.z * ks;
                s[3] += qs.w * ks;
            }
            workgroupBarrier();
        }
        s[0] = mask(s[0], first + y * 4u, key + x * 4u);
        s[1] = mask(s[1], first + y * 4u + 1u, key + x * 4u);
        s[2] = mask(s[2], first + y * 4u + 2u, key + x * 4u);
        s[3] = mask(s[3], first + y * 4u + 3u, key + x * 4u);

        left[lane] = vec4<f32>(largest(s[0]), largest(s[1]), largest(s[2]), largest(s[3]));
        workgroupBarrier();
        let before = peak;
        for (var other = 0u; other < 16u; other += 1u) {
            peak = max(peak, left[y * 16u + other]);
        }
        workgroupBarrier();
        let decay = exp(before - peak);
        s[0] = exp(s[0] - peak.x);
        s[1] = exp(s[1] - peak.y);
        s[2] = exp(s[2] - peak.z);
        s[3] = exp(s[3] - peak.w);
        let one = vec4<f32>(1.0);
        total = total * decay + vec4<f32>(dot(s[0], one), dot(s[1], one), dot(s[2], one), dot(s[3], one));
        for (var slab = 0u; slab < SLABS; slab += 1u) {
            output[slab * 4u] *= decay.x;
            output[slab * 4u + 1u] *= decay.y;
            output[slab * 4u + 2u] *= decay.z;
            output[slab * 4u + 3u] *= decay.w;
        }

        for (var part = 0u; part < TILE / DEPTH && key + part * DEPTH < end; part += 1u) {
            for (var slab = 0u; slab < SLABS; slab += 1u) {
                // P of these 16 keys lies with 4 of the 16 invocations of each row.
                if slab == 0u && x / 4u == part {
                    let depth = x % 4u * 4u;
                    left[depth * 16u + y] = vec4<f32>(s[0].x, s[1].x, s[2].x, s[3].x);
                    left[(depth + 1u) * 16u + y] = vec4<f32>(s[0].y, s[1].y, s[2].y, s[3].y);
                    left[(depth + 2u) * 16u + y] = vec4<f32>(s[0].z, s[1].z, s[2].z, s[3].z);
                    left[(depth + 3u) * 16u + y] = vec4<f32>(s[0].w, s[1].w, s[2].w, s[3].w);
                }
                let j = key + part * DEPTH + y;
                let e = slab * TILE + x * 4u;
                right[lane] = vec4<f32>(load_v(kv_base, j, e), load_v(kv_base, j, e + 1u), load_v(kv_base, j, e + 2u), load_v(kv_base, j, e + 3u));
                workgroupBarrier();
                for (var depth = 0u; depth < DEPTH; depth += 1u) {
                    let ps = left[depth * 16u + y];
                    let vs = right[depth * 16u + x];
                    output[slab * 4u] += ps.x * vs;
                    output[slab * 4u + 1u] += ps.y * vs;
                    output[slab * 4u + 2u] += ps.z * vs;
                    output[slab * 4u + 3u] += ps.w * vs;
                }
                workgroupBarrier();
            }
        }
    }

    left[lane] = total;
    workgroupBarrier();
    var sums = vec4<f32>(0.0);
    for (var other = 0u; other < 16u; other += 1u) {
        sums += left[y * 16u + other];
    }
    for (var i = 0u; i < 4u; i += 1u) {
        let position = first + y * 4u + i;
        for (var slab = 0u; slab < SLABS; slab += 1u) {
            for (var j = 0u; j < 4u; j += 1u) {
                let column = slab * TILE + x * 4u + j;
                if position < p.seq_len && column < p.head_dim {
                    out[q_base + position * p.heads * p.head_dim + column] = output[slab * 4u + i][j] / sums[i];
                }
            }
        }
    }
}
