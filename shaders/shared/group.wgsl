// Reductions over a workgroup of 256: every invocation gives a value and gets the result. Call in uniform control flow.

const LANES = 256u;

var<workgroup> group_values: array<f32, 256>;

fn group_sum(lane: u32, value: f32) -> f32 {
    group_values[lane] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane < width {
            group_values[lane] += group_values[lane + width];
        }
        workgroupBarrier();
    }
    let sum = group_values[0];
    // Nobody may start the next reduction before all have read this one's result.
    workgroupBarrier();
    return sum;
}

fn group_max(lane: u32, value: f32) -> f32 {
    group_values[lane] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if lane < width {
            group_values[lane] = max(group_values[lane], group_values[lane + width]);
        }
        workgroupBarrier();
    }
    let largest = group_values[0];
    workgroupBarrier();
    return largest;
}
