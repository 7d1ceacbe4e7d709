// The largest magnitudes of the rows of a matrix, from which split.wgsl derives its scales (src/ops/cooperative.rs). The output is
// [chunks, padded_rows]: the largest magnitude of every row in every chunk of the depth. One workgroup handles 64 rows and one
// chunk.
#import plane

#ifdef DIFFERENCE
@group(0) @binding(3) var<storage, read_write> range: array<f32>;
#else
@group(0) @binding(2) var<storage, read_write> range: array<f32>;
#endif

// Number of invocations that share a row.
#ifdef ROWS
const SLICES = 32u;
#else
const SLICES = 4u;
#endif

var<workgroup> part: array<f32, 2048>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.x * 64u;
    let depth0 = group.y * CHUNK;
    // Neighbouring lanes read neighbouring elements in memory.
#ifdef ROWS
    let slice = lane % SLICES;
    let first = lane / SLICES;
#else
    let slice = lane / 64u;
    let first = lane % 64u;
#endif
    for (var row = first; row < 64u; row += 256u / SLICES) {
        var largest = 0.0;
        for (var depth = slice; depth < CHUNK; depth += SLICES) {
            largest = max(largest, abs(value(row0 + row, depth0 + depth)));
        }
        part[row * SLICES + slice] = largest;
    }
    workgroupBarrier();
    if lane < 64u {
        var largest = 0.0;
        for (var i = 0u; i < SLICES; i += 1u) {
            largest = max(largest, part[lane * SLICES + i]);
        }
        range[group.y * p.padded_rows + row0 + lane] = largest;
    }
}
