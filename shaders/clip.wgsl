// Keeps the better of two grids per row and group, by Σ e·c over the group. One cell per workgroup.

struct Params {
    n: u32,
    group_size: u32,
    groups: u32,
    // Rows × groups, and workgroups along x.
    count: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> e: array<f32>;
@group(0) @binding(2) var<storage, read> c: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read> zeros: array<f32>;
@group(0) @binding(5) var<storage, read_write> losses: array<f32>;
@group(0) @binding(6) var<storage, read_write> best_scales: array<f32>;
@group(0) @binding(7) var<storage, read_write> best_zeros: array<f32>;

const LANES = 64u;
var<workgroup> partial: array<f32, LANES>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * p.stride + group.x;
    if index >= p.count {
        return;
    }
    let column = index % p.groups * p.group_size;
    let first = index / p.groups * p.n + column;
    let last = first + min(p.group_size, p.n - column);
    var sum = 0.0;
    for (var i = first + lane; i < last; i += LANES) {
        sum += e[i] * c[i];
    }
    partial[lane] = sum;
    workgroupBarrier();
    if lane == 0u {
        var loss = 0.0;
        for (var i = 0u; i < LANES; i += 1u) {
            loss += partial[i];
        }
        if loss < losses[index] {
            losses[index] = loss;
            best_scales[index] = scales[index];
            best_zeros[index] = zeros[index];
        }
    }
}
