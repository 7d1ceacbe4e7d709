// Reductions over a workgroup of LANES, a power of two that the file which imports this defines: every invocation gives a value
// and gets the result. Call in uniform control flow. With SUBGROUPS, on devices of the fast tier, subgroups reduce on their own
// first, and two barriers do.

// The workgroup is not among these: browsers take a whole struct for what may differ between invocations.
struct Invocation {
    @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUPS
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) place: u32,
#endif
}

var<workgroup> group_values: array<f32, LANES>;

fn group_sum(at: Invocation, value: f32) -> f32 {
#ifdef SUBGROUPS
    let part = subgroupAdd(value);
    if at.place == 0u {
        group_values[at.subgroup] = part;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < at.subgroups; i += 1u) {
        sum += group_values[i];
    }
#else
    group_values[at.lane] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if at.lane < width {
            group_values[at.lane] += group_values[at.lane + width];
        }
        workgroupBarrier();
    }
    let sum = group_values[0];
#endif
    // Nobody may start the next reduction before all have read this one's result.
    workgroupBarrier();
    return sum;
}

fn group_max(at: Invocation, value: f32) -> f32 {
#ifdef SUBGROUPS
    let part = subgroupMax(value);
    if at.place == 0u {
        group_values[at.subgroup] = part;
    }
    workgroupBarrier();
    var largest = group_values[0];
    for (var i = 1u; i < at.subgroups; i += 1u) {
        largest = max(largest, group_values[i]);
    }
#else
    group_values[at.lane] = value;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if at.lane < width {
            group_values[at.lane] = max(group_values[at.lane], group_values[at.lane + width]);
        }
        workgroupBarrier();
    }
    let largest = group_values[0];
#endif
    workgroupBarrier();
    return largest;
}
