// The statistics of the calibration tokens (src/ops/gram.rs): the hessian H += XᵀX in packed storage, or with CROSS the error
// correlation D += (X − X̂)ᵀX̂ in a dense matrix. CROSS computes some rows of D per dispatch. X and X̂ are [tokens, n]. One
// workgroup computes one 64×64 tile.
#import tiles
#import product

struct Params {
    n: u32,
    // The dispatch sums over the tokens first..last.
    first: u32,
    last: u32,
    // Number of tiles, and number of workgroups along x. CROSS does not use them: its workgroups have a tile row and a tile column.
    tiles: u32,
    stride: u32,
    // CROSS: the buffer `sums` holds the rows start..start + rows of D.
    start: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
#ifdef CROSS
@group(0) @binding(2) var<storage, read> x_hat: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;
#else
@group(0) @binding(2) var<storage, read_write> sums: array<vec4<f32>>;
#endif

const A_ALONG_DEPTH = false;
const B_ALONG_DEPTH = false;

// First row and column of the tile.
var<private> row0: u32;
var<private> column0: u32;

fn load_a(row: u32, token: u32) -> f32 {
    let channel = row0 + row;
    if channel >= p.n || token >= p.last {
        return 0.0;
    }
#ifdef CROSS
    return x[token * p.n + channel] - x_hat[token * p.n + channel];
#else
    return x[token * p.n + channel];
#endif
}

fn load_b(column: u32, token: u32) -> f32 {
    let channel = column0 + column;
    if channel >= p.n || token >= p.last {
        return 0.0;
    }
#ifdef CROSS
    return x_hat[token * p.n + channel];
#else
    return x[token * p.n + channel];
#endif
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var sum: array<vec4<f32>, 16>;
#ifdef CROSS
    row0 = p.start + group.y * 64u;
    column0 = group.x * 64u;
    product(lane, p.first, p.last, &sum);
    for (var i = 0u; i < 8u; i += 1u) {
        let row = row0 - p.start + tile_row(lane, i);
        for (var j = 0u; j < 2u; j += 1u) {
            for (var c = 0u; c < 4u; c += 1u) {
                let column = column0 + tile_column(lane, j) + c;
                if row < p.rows && column < p.n {
                    sums[row * p.n + column] += sum[2u * i + j][c];
                }
            }
        }
    }
#else
    let tile = group.y * p.stride + group.x;
    if tile >= p.tiles {
        return;
    }
    let position = tile_position(tile);
    row0 = position.x * 64u;
    column0 = position.y * 64u;
    product(lane, p.first, p.last, &sum);
    for (var i = 0u; i < 8u; i += 1u) {
        for (var j = 0u; j < 2u; j += 1u) {
            sums[(tile * AREA + tile_row(lane, i) * 64u + tile_column(lane, j)) / 4u] += sum[2u * i + j];
        }
    }
#endif
}
