// C (+)= P·Qᵀ of split matrices, by cooperative matrices of f16 that add up in f32. With GRAM the lower triangle of P·Pᵀ is added
// to a packed matrix.
//
// Of (high + low)·(high + low) three products are taken; low·low is below the rounding of f32. Each tile of depth is summed
// within the matrix unit, whose adder may truncate, and added to the total outside of it, which rounds to nearest. The order of
// all sums is that of the depth, whatever the shape: shapes differ in how tiles go to subgroups.
enable f16;
enable wgpu_cooperative_matrix;
#ifdef GRAM
#import tiles
#endif

struct Params {
    m: u32,
    n: u32,
    // Tiles along the depth.
    depth: u32,
    accumulate: u32,
    c_start: u32,
    // Elements from one row of C to the next. With GRAM: workgroups along x.
    c_stride: u32,
    // With GRAM: workgroups that have something to do.
    blocks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f16>;
@group(0) @binding(2) var<storage, read> b: array<f16>;
// What undoes the scale of each row of P, and of Q.
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
// Elements of a tile.
const SQUARE = EXTENT * EXTENT;

// Subgroups of a workgroup down and across, and tiles of each down and across. Together they are a square.
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

// Invocations of a workgroup: subgroups times their size on the device.
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
    // Were subgroups of another size than was promised, nothing would be written, and the check of the device would find out.
    let as_promised = subgroups == DOWN * ACROSS;
    // First tile of this subgroup.
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
            // Q lies as P does, so its transpose lies by columns.
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
