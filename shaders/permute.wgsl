// A transposition that also permutes columns (src/ops/permute.rs). It converts a weight [m, n] to the layout of the column loop:
// out[i, r] = w[r, order[i]], [n, m] in processing order (act order). With BACK it converts x [n, m] back to [m, n]:
// out[r, order[i]] = x[i, r]. Elements may be of any type of four bytes. One workgroup transposes a 32×32 tile in workgroup
// memory, so that the reads and the writes both coalesce.

struct Params {
    m: u32,
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> destination: array<u32>;

// The tile, in the orientation of the source. Each row has one element of padding, which avoids bank conflicts.
var<workgroup> tile: array<u32, 1056>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i0 = group.x * 32u;
    let r0 = group.y * 32u;
    let minor = lane % 32u;
    for (var major = lane / 32u; major < 32u; major += 8u) {
#ifdef BACK
        let i = i0 + major;
        let r = r0 + minor;
        if i < p.n && r < p.m {
            tile[major * 33u + minor] = source[i * p.m + r];
        }
#else
        let i = i0 + minor;
        let r = r0 + major;
        if i < p.n && r < p.m {
            tile[major * 33u + minor] = source[r * p.n + order[i]];
        }
#endif
    }
    workgroupBarrier();
    for (var major = lane / 32u; major < 32u; major += 8u) {
#ifdef BACK
        let i = i0 + minor;
        let r = r0 + major;
        if i < p.n && r < p.m {
            destination[r * p.n + order[i]] = tile[minor * 33u + major];
        }
#else
        let i = i0 + major;
        let r = r0 + minor;
        if i < p.n && r < p.m {
            destination[i * p.m + r] = tile[minor * 33u + major];
        }
#endif
    }
}
