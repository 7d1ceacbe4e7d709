// Index arithmetic for a symmetric or lower triangular matrix in packed storage, such as the hessian. The host's type is
// `Packed` in src/ops/gram.rs.
//
// Only the tiles of the lower triangle are stored. Tile (row, column), column ≤ row, holds 64×64 elements in row-major order and
// has index row(row+1)/2 + column.

// Number of elements of a tile.
const AREA = 4096u;

// Returns the tile row and tile column of tile number `index`.
fn tile_position(index: u32) -> vec2<u32> {
    var row = u32((sqrt(f32(8u * index + 1u)) - 1.0) * 0.5);
    // The rounding of the square root may make `row` too large or too small by one.
    if row * (row + 1u) / 2u > index {
        row -= 1u;
    }
    if (row + 1u) * (row + 2u) / 2u <= index {
        row += 1u;
    }
    return vec2<u32>(row, index - row * (row + 1u) / 2u);
}

// Returns the index of the first element of a tile.
fn tile_offset(row: u32, column: u32) -> u32 {
    return (row * (row + 1u) / 2u + column) * AREA;
}

// Returns the index of an element of the matrix; column ≤ row.
fn element_offset(row: u32, column: u32) -> u32 {
    return tile_offset(row / 64u, column / 64u) + row % 64u * 64u + column % 64u;
}
