// The column loop that the kernels gptq and descent share. It processes the columns of a block in order. For each column c it
// computes t_c += Σ_{j<c} coefficient(j, c)·x_j, and then x_c = finish_column(c, t_c). One invocation handles one row of the
// weight. The CPU twin is src/ops/walk.rs.
//
// The loop takes sub-blocks of 16 columns and keeps their t in registers. It first adds the terms of all columns before the
// sub-block. Then it processes the sub-block itself, four columns (a quad) at a time. The coefficients pass through workgroup
// memory.
//
// The importing file declares the uniform block `p` with `m` rows and `count` columns, the private variable `row`, and four
// functions:
//   target_weight(c)          t_c before the loop.
//   coefficient(j, c)         the factor of x_j in t_c; 0 outside the block.
//   finish_column(c, value)   receives the complete t_c, stores x_c and returns it; 0 outside the block.
//   finished_value(c)         the x_c that finish_column stored.

const LANES = 64u;
// Number of rows of coefficients in workgroup memory. Each row has 16 columns, stored as four vectors.
const STAGED = 128u;
var<workgroup> coefficients: array<vec4<f32>, 512>;

// Copies the coefficients of rows j0..j0 + 128 and columns c0..c0 + 16 to workgroup memory.
fn stage(lane: u32, j0: u32, c0: u32) {
    workgroupBarrier();
    for (var i = lane; i < STAGED * 4u; i += LANES) {
        let j = j0 + i / 4u;
        let c = c0 + i % 4u * 4u;
        coefficients[i] = vec4<f32>(coefficient(j, c), coefficient(j, c + 1u), coefficient(j, c + 2u), coefficient(j, c + 3u));
    }
    workgroupBarrier();
}

// Returns t of the columns c..c + 4 before the loop.
fn target_quad(c: u32) -> vec4<f32> {
    return vec4<f32>(target_weight(c), target_weight(c + 1u), target_weight(c + 2u), target_weight(c + 3u));
}

// Finishes the four columns of quad q of the sub-block at c0 and returns their x. `quad` holds their t, complete but for the
// terms of the quad itself. Workgroup memory must hold the coefficients of the rows of the sub-block.
fn finish_quad(c0: u32, q: u32, quad: vec4<f32>) -> vec4<f32> {
    let c = c0 + q * 4u;
    let r = q * 16u + q;
    let x = finish_column(c, quad.x);
    let after_x = quad + x * coefficients[r];
    let y = finish_column(c + 1u, after_x.y);
    let after_y = after_x + y * coefficients[r + 4u];
    let z = finish_column(c + 2u, after_y.z);
    let after_z = after_y + z * coefficients[r + 8u];
    return vec4<f32>(x, y, z, finish_column(c + 3u, after_z.w));
}

// Returns the terms that the columns of quad q, with x = e, add to t of the columns of quad `to`.
fn carry(e: vec4<f32>, q: u32, to: u32) -> vec4<f32> {
    let r = q * 16u + to;
    return e.x * coefficients[r] + e.y * coefficients[r + 4u] + e.z * coefficients[r + 8u] + e.w * coefficients[r + 12u];
}

// Processes the whole block. The caller has set `row`. `lane` is the index of the invocation in its workgroup of 64.
fn walk(lane: u32) {
    for (var c0 = 0u; c0 < p.count; c0 += 16u) {
        var t0 = target_quad(c0);
        var t1 = target_quad(c0 + 4u);
        var t2 = target_quad(c0 + 8u);
        var t3 = target_quad(c0 + 12u);
        for (var j0 = 0u; j0 < c0; j0 += STAGED) {
            stage(lane, j0, c0);
            for (var j = 0u; j < min(STAGED, c0 - j0); j += 1u) {
                var error = 0.0;
                if row < p.m {
                    error = finished_value(j0 + j);
                }
                t0 += error * coefficients[j * 4u];
                t1 += error * coefficients[j * 4u + 1u];
                t2 += error * coefficients[j * 4u + 2u];
                t3 += error * coefficients[j * 4u + 3u];
            }
        }
        stage(lane, c0, c0);
        let e0 = finish_quad(c0, 0u, t0);
        t1 += carry(e0, 0u, 1u);
        let e1 = finish_quad(c0, 1u, t1);
        t2 += carry(e0, 0u, 2u) + carry(e1, 1u, 2u);
        let e2 = finish_quad(c0, 2u, t2);
        t3 += carry(e0, 0u, 3u) + carry(e1, 1u, 3u) + carry(e2, 2u, 3u);
        finish_quad(c0, 3u, t3);
    }
}
