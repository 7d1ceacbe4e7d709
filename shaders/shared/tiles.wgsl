// Where the tiles of a packed lower triangle are: tile (row, column), column ≤ row, 64×64, row-major, at index
// row(row+1)/2 + column.

const AREA = 4096u;

// Row and column of tile number `index`.
fn tile_position(index: u32) -> vec2<u32> {
    var row = u32((sqrt(f32(8u * index + 1u)) - 1.0) * 0.5);
    // The square root may be off by a rounding.
    if row * (row + 1u) / 2u > index {
        row -= 1u;
    }
    if (row + 1u) * (row + 2u) / 2u <= index {
        row += 1u;
    }
    return vec2<u32>(row, index - row * (row + 1u) / 2u);
}

// Offset of a tile.
fn tile_offset(row: u32, column: u32) -> u32 {
    return (row * (row + 1u) / 2u + column) * AREA;
}

// Offset of an element, column ≤ row.
fn element_offset(row: u32, column: u32) -> u32 {
    return tile_offset(row / 64u, column / 64u) + row % 64u * 64u + column % 64u;
}
