// The split of a matrix into two planes of f16 for the fast matrix product (src/ops/cooperative.rs): x·s = high + low. The
// factor s is a power of two for each row. It brings the largest magnitude of the row between 2^14 and 2^15. The error of the
// split is below 2^-22 of the element, or below 2^-39 of the largest element of the row.
//
// The planes are stored in square tiles, as cooperative.wgsl loads them: [tile row][tile along the depth]. A tile holds all its
// high parts and then all its low parts, each as [row][depth] with two f16 per word. Padding rows and padding depths are zero.
// One workgroup handles 64 rows and one chunk of depths.
#import plane

#ifdef DIFFERENCE
@group(0) @binding(3) var<storage, read> range: array<f32>;
@group(0) @binding(4) var<storage, read_write> planes: array<u32>;
@group(0) @binding(5) var<storage, read_write> undo: array<f32>;
#else
@group(0) @binding(2) var<storage, read> range: array<f32>;
@group(0) @binding(3) var<storage, read_write> planes: array<u32>;
// [padded_rows]: 1/s of each row.
@group(0) @binding(4) var<storage, read_write> undo: array<f32>;
#endif

// Number of depths in workgroup memory at a time.
const STEP = 32u;
// [row][depth]. Each row has one element of padding, which avoids bank conflicts.
const PITCH = 33u;
var<workgroup> staged: array<f32, 2112>;
var<workgroup> scales: array<f32, 64>;

// Returns the f16 nearest to x, as f32, for |x| of at most 2^15. The rounding uses integer arithmetic, because a driver may
// simplify f32(f16(x)) to x.
fn nearest_half(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let normal = bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
    return select(normal, round(x * 16777216.0) / 16777216.0, abs(x) < 6.103515625e-5);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.x * 64u;
    if lane < 64u {
        var largest = 0.0;
        for (var chunk = 0u; chunk < p.chunks; chunk += 1u) {
            largest = max(largest, range[chunk * p.padded_rows + row0 + lane]);
        }
        // The biased exponent, clamped so that s and 1/s are normal numbers.
        let exponent = clamp(bitcast<u32>(largest) >> 23u, 15u, 254u);
        scales[lane] = bitcast<f32>((268u - exponent) << 23u);
        if group.y == 0u {
            undo[row0 + lane] = bitcast<f32>((exponent - 14u) << 23u);
        }
    }
    workgroupBarrier();
    let pairs = p.extent / 2u;
    let words = p.extent * pairs;
    let deep = STEP / p.extent;
    for (var step = 0u; step < CHUNK; step += STEP) {
        let depth0 = group.y * CHUNK + step;
        for (var i = lane; i < 64u * STEP; i += 256u) {
#ifdef ROWS
            let row = i / STEP;
            let depth = i % STEP;
#else
            let row = i % 64u;
            let depth = i / 64u;
#endif
            staged[row * PITCH + depth] = value(row0 + row, depth0 + depth) * scales[row];
        }
        workgroupBarrier();
        if depth0 < p.padded_depth {
            for (var i = lane; i < 32u * STEP; i += 256u) {
                let tile = i / words;
                let word = i % words;
                let row = tile / deep * p.extent + word / pairs;
                let depth = tile % deep * p.extent + word % pairs * 2u;
                let x0 = staged[row * PITCH + depth];
                let x1 = staged[row * PITCH + depth + 1u];
                let high0 = nearest_half(x0);
                let high1 = nearest_half(x1);
                let across = row0 / p.extent + tile / deep;
                let along = depth0 / p.extent + tile % deep;
                let index = (across * (p.padded_depth / p.extent) + along) * 2u * words + word;
                planes[index] = pack2x16float(vec2<f32>(high0, high1));
                planes[index + words] = pack2x16float(vec2<f32>(nearest_half(x0 - high0), nearest_half(x1 - high1)));
            }
        }
        workgroupBarrier();
    }
}
