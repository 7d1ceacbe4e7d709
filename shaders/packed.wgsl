// Conversions of a symmetric matrix in packed storage (src/ops/gram.rs):
//   UNPACK: from packed storage to some rows of the dense matrix, [rows, n]
//   PACK: from a dense matrix [n, n], of which only the lower triangle is read, to packed storage
//   DIAGONAL: from packed storage to the diagonal, [n]
// One invocation per element written.
#import tiles

struct Params {
    n: u32,
    // Number of elements written, and number of invocations along x.
    count: u32,
    stride: u32,
    // UNPACK: the first row.
    start: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * p.stride + id.x;
    if i >= p.count {
        return;
    }
#ifdef UNPACK
    let row = p.start + i / p.n;
    let column = i % p.n;
    destination[i] = source[element_offset(max(row, column), min(row, column))];
#endif
#ifdef PACK
    let position = tile_position(i / AREA) * 64u + vec2<u32>(i % AREA / 64u, i % 64u);
    let row = max(position.x, position.y);
    destination[i] = select(0.0, source[min(row, p.n - 1u) * p.n + min(position.x, position.y)], row < p.n);
#endif
#ifdef DIAGONAL
    destination[i] = source[element_offset(i, i)];
#endif
}
