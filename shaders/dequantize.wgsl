// Dequantization (src/ops/dequantize.rs): value[r, c] = scale·(code − zero) + offset, with the scale, and the zero point or
// offset, of row r and of group c / group_size. One invocation per element.
#import quantizer

struct Params {
    count: u32,
    columns: u32,
    groups: u32,
    group_size: u32,
    // Number of invocations along x. The elements are spread over two axes.
    stride: u32,
    // 1 if the grid has offsets instead of zero points.
    offsets: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// [m, n], then scales and zero points [m, groups].
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> zeros: array<f32>;
@group(0) @binding(4) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let index = id.y * p.stride + id.x;
    if index >= p.count {
        return;
    }
    let at = (index / p.columns) * p.groups + (index % p.columns) / p.group_size;
    values[index] = value_of(f32(codes[index]), cell(scales[at], zeros[at], p.offsets));
}
