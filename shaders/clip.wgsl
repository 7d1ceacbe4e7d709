// The choice of the clipping range in AWQ (src/ops/clip.rs). For each cell, that is for each group of each row, the kernel
// compares a candidate grid with the best grid so far and keeps the better one. The loss of a candidate is Σ e·c over the
// cell, where e is the quantization error of the weight and c is e times the diagonal block of H. One workgroup per cell.

struct Params {
    n: u32,
    group_size: u32,
    groups: u32,
    // Number of cells (rows × groups), and number of workgroups along x.
    count: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [m, n], twice.
@group(0) @binding(1) var<storage, read> e: array<f32>;
@group(0) @binding(2) var<storage, read> c: array<f32>;
// The candidate grid, and below it the loss and the grid of the best candidate so far. All are [m, groups].
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
