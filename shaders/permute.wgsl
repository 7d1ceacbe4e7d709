// out[i, r] = w[r, order[i]] of w [m, n]; with BACK out[r, order[i]] = x[i, r] of x [n, m]. Any four-byte elements.
// A 32×32 tile per workgroup, turned in workgroup memory so that reads and writes both coalesce.

struct Params {
    m: u32,
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> destination: array<u32>;

// [first index of the read][second], rows one longer against bank conflicts.
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
