// The input of the kernels `split_range` and `split`, which prepare an operand of a fast matrix product (see cooperative.wgsl).
//
// The operand consists of rows. A product contracts the elements of two rows, and the index along a row is called the depth.
// With ROWS, each row is contiguous in memory: the matrix in memory is [rows, depth]. Otherwise the matrix in memory is
// [depth, rows]. With DIFFERENCE, the operand is the difference X − X̂ of two matrices of the same layout.

struct Params {
    rows: u32,
    depth: u32,
    // Index of the first element, and number of elements from one row in memory to the next.
    start: u32,
    stride: u32,
    // Number of rows including padding, a multiple of 64.
    padded_rows: u32,
    // Depth including padding, a multiple of 32.
    padded_depth: u32,
    // Number of chunks of CHUNK depths.
    chunks: u32,
    // Number of rows, and of columns, of a tile of a plane (8 or 16).
    extent: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
#ifdef DIFFERENCE
@group(0) @binding(2) var<storage, read> x_hat: array<f32>;
#endif

// Number of depths that one workgroup handles.
const CHUNK = 128u;

// Returns an element of the operand. Returns 0 in the padding.
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
