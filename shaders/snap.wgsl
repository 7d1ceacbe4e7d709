// Units for scales and offsets that are stored as small whole numbers (src/ops/snap.rs). One invocation handles the groups of one row
// that share units: it chooses the units and brings the numbers to the nearest multiples.
#import stored
#import units

struct Params {
    groups: u32,
    // Number of units per row, and number of groups that share one.
    units: u32,
    per_unit: u32,
    // Number of units of all rows.
    count: u32,
    // The number of units of the largest scale. It is negative if numbers have a sign.
    extreme: f32,
    least: f32,
    most: f32,
    // The greatest number of units of an offset; 0 if there are no offsets.
    most_offset: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
// Scales, and offsets or zero points, [m, groups].
@group(0) @binding(1) var<storage, read_write> scales: array<f32>;
@group(0) @binding(2) var<storage, read_write> zeros: array<f32>;
// The units of scales, [m, units], then those of offsets.
@group(0) @binding(3) var<storage, read_write> units: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.x;
    if index >= p.count {
        return;
    }
    let first = index / p.units * p.groups + index % p.units * p.per_unit;
    let last = min(first + p.per_unit, (index / p.units + 1u) * p.groups);
    var largest = 0.0;
    var lowest = 0.0;
    for (var i = first; i < last; i += 1u) {
        largest = select(largest, scales[i], abs(scales[i]) > abs(largest));
        lowest = min(lowest, zeros[i]);
    }
    // A unit is never 0, unless no group has an offset.
    let unit = stored(largest / p.extreme, 1u);
    units[index] = unit;
    for (var i = first; i < last; i += 1u) {
        scales[i] = whole(scales[i], unit, p.least, p.most);
    }
    if p.most_offset > 0.0 {
        let unit = stored(-lowest / p.most_offset, 1u);
        units[p.count + index] = unit;
        for (var i = first; i < last; i += 1u) {
            zeros[i] = whole_offset(zeros[i], unit, p.most_offset);
        }
    }
}
