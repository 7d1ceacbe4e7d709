// Rounding to nearest, RTN (src/ops/rtn.rs): the codes q = clamp(round_half_even((w − o) / s) + z, 0, top), and the rounded
// weights s·(q − z) + o. One invocation per weight.
#import quantizer

struct Params {
    n: u32,
    group_size: u32,
    groups: u32,
    // Number of weights, and number of invocations along x.
    count: u32,
    stride: u32,
    // The largest code, 2^b − 1.
    top: f32,
    // 1 if the grid has offsets instead of zero points.
    offsets: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// w, codes and values: [m, n]. scales and zeros: [m, groups].
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> zeros: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index >= p.count {
        return;
    }
    let at = index / p.n * p.groups + index % p.n / p.group_size;
    let grid = cell(scales[at], zeros[at], p.offsets);
    // This divides by the scale, as the CPU twin does, instead of multiplying by 1/s. The ends of a symmetric range are exact ties,
    // and the quotient keeps them exact.
    let code = code_at((w[index] - grid.offset) / grid.scale, grid, p.top);
    codes[index] = u32(code);
    values[index] = value_of(code, grid);
}
