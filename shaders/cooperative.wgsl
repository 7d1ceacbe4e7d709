// The matrix product of the fast tier (src/ops/cooperative.rs): C = P·Qᵀ or C += P·Qᵀ, computed by cooperative matrices with f16
// operands and f32 sums. P and Q are split into two f16 planes by split.wgsl. With GRAM, the kernel adds the lower triangle of
// P·Pᵀ to a matrix in packed storage.
//
// An element is high + low. The kernel computes three of the four products of two such sums. It leaves out low·low, which is
// below the rounding of f32. The matrix unit sums the products within one tile of depth, and its adder may truncate. The sums of
// the tiles are added outside the matrix unit, which rounds to nearest. All sums run in the order of the depth in every variant.
// Variants with one extent differ only in how the tiles are assigned to subgroups, so they give the same bits.
enable f16;
enable wgpu_cooperative_matrix;
#ifdef GRAM
#import tiles
#endif

struct Params {
    m: u32,
    n: u32,
    // Number of tiles along the depth.
    depth: u32,
    // 1 if the product is added to C, 0 if it replaces C.
    accumulate: u32,
    // Index of the first element of C.
    c_start: u32,
    // Number of elements from one row of C to the next. With GRAM: number of workgroups along x.
    c_stride: u32,
    // With GRAM: number of workgroups that have work.
    blocks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
// The planes of P, and of Q, in the layout that split.wgsl writes.
@group(0) @binding(1) var<storage, read> a: array<f16>;
@group(0) @binding(2) var<storage, read> b: array<f16>;
// For each row of P, and of Q: the factor that undoes the scale of the row.
@group(0) @binding(3) var<storage, read> a_undo: array<f32>;
@group(0) @binding(4) var<storage, read> b_undo: array<f32>;
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

#ifdef EXTENT_16
const EXTENT = 16u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
#else
const EXTENT = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
#endif
// Number of elements of a tile.
const SQUARE = EXTENT * EXTENT;

// Number of subgroups of a workgroup, down and across, and number of tiles of each subgroup, down and across. The block of a
// workgroup is a square.
#ifdef SUBGROUPS_1X1
const DOWN = 1u;
const ACROSS = 1u;
#endif
#ifdef SUBGROUPS_2X2
const DOWN = 2u;
const ACROSS = 2u;
#endif
#ifdef SUBGROUPS_4X2
const DOWN = 4u;
const ACROSS = 2u;
#endif
#ifdef TILES_2X2
const ROWS = 2u;
const COLUMNS = 2u;
#endif
#ifdef TILES_2X4
const ROWS = 2u;
const COLUMNS = 4u;
#endif
#ifdef TILES_4X4
const ROWS = 4u;
const COLUMNS = 4u;
#endif
#ifdef TILES_8X8
const ROWS = 8u;
const COLUMNS = 8u;
#endif

// Number of invocations of a workgroup: the number of subgroups times the subgroup size of the device.
override threads: u32 = 32u;

var<workgroup> scratch: array<f32, DOWN * ACROSS * SQUARE>;

@compute @workgroup_size(threads)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) lanes: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
#ifdef GRAM
    let index = group.y * p.c_stride + group.x;
    if index >= p.blocks {
        return;
    }
    let block = tile_position(index);
#else
    let block = vec2<u32>(group.y, group.x);
#endif
    // If the subgroups do not have the size that the driver reports, the kernel writes nothing. The check of the fast tier
    // (src/ops/tier.rs) then finds wrong results and rejects the kernel.
    let as_promised = subgroups == DOWN * ACROSS;
    // Tile row and tile column of the first tile of this subgroup.
    let tile_row = (block.x * DOWN + subgroup / ACROSS) * ROWS;
    let tile_column = (block.y * ACROSS + subgroup % ACROSS) * COLUMNS;
    var total: array<Sum, ROWS * COLUMNS>;
    for (var i = 0u; i < ROWS * COLUMNS; i += 1u) {
        total[i] = Sum();
    }
    for (var d = 0u; d < p.depth; d += 1u) {
        var high: array<Left, ROWS>;
        var low: array<Left, ROWS>;
        for (var i = 0u; i < ROWS; i += 1u) {
            let at = ((tile_row + i) * p.depth + d) * 2u * SQUARE;
            high[i] = coopLoadT<Left>(&a[at], EXTENT);
            low[i] = coopLoadT<Left>(&a[at + SQUARE], EXTENT);
        }
        for (var j = 0u; j < COLUMNS; j += 1u) {
            // Q has the same layout as P. So the transpose of Q is stored by columns.
            let at = ((tile_column + j) * p.depth + d) * 2u * SQUARE;
            let right_high = coopLoad<Right>(&b[at], EXTENT);
            let right_low = coopLoad<Right>(&b[at + SQUARE], EXTENT);
            for (var i = 0u; i < ROWS; i += 1u) {
                var part = coopMultiplyAdd(low[i], right_high, Sum());
                part = coopMultiplyAdd(high[i], right_low, part);
                part = coopMultiplyAdd(high[i], right_high, part);
                total[i * COLUMNS + j] = total[i * COLUMNS + j] + part;
            }
        }
    }
    for (var i = 0u; i < ROWS; i += 1u) {
        for (var j = 0u; j < COLUMNS; j += 1u) {
            coopStoreT(total[i * COLUMNS + j], &scratch[subgroup * SQUARE], EXTENT);
            workgroupBarrier();
            for (var e = lane; e < SQUARE; e += lanes) {
                let row = (tile_row + i) * EXTENT + e / EXTENT;
                let column = (tile_column + j) * EXTENT + e % EXTENT;
                let value = scratch[subgroup * SQUARE + e] * (a_undo[row] * b_undo[column]);
#ifdef GRAM
                if as_promised && row < p.n && column < p.n && column / 64u <= row / 64u {
                    c[element_offset(row, column)] += value;
                }
#else
                if as_promised && row < p.m && column < p.n {
                    let index = p.c_start + row * p.c_stride + column;
                    c[index] = select(0.0, c[index], p.accumulate == 1u) + value;
                }
#endif
            }
            workgroupBarrier();
        }
    }
}
