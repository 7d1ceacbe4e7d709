// What the split kernels read: a matrix as rows that a product contracts along their depth. With ROWS a row is contiguous in
// memory, else the rows of the matrix in memory are its depths. With DIFFERENCE it is the difference of two such matrices.

struct Params {
    rows: u32,
    depth: u32,
    // Offset of the first element, and elements from one row in memory to the next.
    start: u32,
    stride: u32,
    // Rows with those of padding, a multiple of 64.
    padded_rows: u32,
    // Depth with that of padding, a multiple of 32.
    padded_depth: u32,
    // Pieces of the depth, CHUNK each.
    chunks: u32,
    // Rows, and columns, of a tile of a plane.
    extent: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
#ifdef DIFFERENCE
@group(0) @binding(2) var<storage, read> x_hat: array<f32>;
#endif

// Depths per workgroup.
const CHUNK = 128u;

fn value(row: u32, depth: u32) -> f32 {
    if row >= p.rows || depth >= p.depth {
        return 0.0;
    }
#ifdef ROWS
    let index = p.start + row * p.stride + depth;
#else
    let index = p.start + depth * p.stride + row;
#endif
#ifdef DIFFERENCE
    return x[index] - x_hat[index];
#else
    return x[index];
#endif
}
