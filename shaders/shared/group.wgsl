// Sum and maximum over a workgroup. Every invocation passes one value and gets the result for the whole workgroup.
// Imported by kl, layer_norm, nll, reduce and rms_norm.
//
// The importing file defines LANES, the number of invocations in the workgroup. It must be a power of two. Call the functions
// in uniform control flow only, because they contain barriers. With SUBGROUPS, which is defined on devices of the fast tier,
// each subgroup first reduces its own values. Two barriers are enough then.

// The built-in values that a reduction needs. The id of the workgroup is not among them. Browsers treat all fields of such a
// struct as values that may differ between invocations, and the id must count as uniform.
struct Invocation {
    @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUPS
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) place: u32,
#endif
}

var<workgroup> group_values: array<f32, LANES>;

// Returns the sum of `value` over the workgroup.
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
    // The next reduction overwrites `group_values`. It may start only after all invocations have read this result.
    workgroupBarrier();
    return sum;
}

// Returns the maximum of `value` over the workgroup.
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
