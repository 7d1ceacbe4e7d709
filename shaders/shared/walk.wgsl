// The columns of a block in order, one invocation per row: t_c += Σ_{j<c} coefficient(j, c)·x_j, then x_c = settle(c, t_c).
//
// Columns go in sub-blocks of 16 whose t is in registers: first what the columns before the sub-block add, then the
// sub-block itself, four columns at a time. The coefficients come through workgroup memory.
//
// The importer has `p` with `m` rows and `count` columns, `row`, and four functions: `target_weight(c)`, t_c as it comes
// from elsewhere; `coefficient(j, c)`, 0 beyond the block; `settle(c, value)`, which stores x_c and returns it, 0 beyond the
// block; and `settled(c)`, what it stored.

const LANES = 64u;
// Rows of coefficients in workgroup memory, 16 columns each.
const STAGED = 128u;
var<workgroup> coefficients: array<vec4<f32>, 512>;

// Fetches the coefficients of rows j0..j0 + 128 and columns c0..c0 + 16.
fn stage(lane: u32, j0: u32, c0: u32) {
    workgroupBarrier();
    for (var i = lane; i < STAGED * 4u; i += LANES) {
        let j = j0 + i / 4u;
        let c = c0 + i % 4u * 4u;
        coefficients[i] = vec4<f32>(coefficient(j, c), coefficient(j, c + 1u), coefficient(j, c + 2u), coefficient(j, c + 3u));
    }
    workgroupBarrier();
}

fn target_quad(c: u32) -> vec4<f32> {
    return vec4<f32>(target_weight(c), target_weight(c + 1u), target_weight(c + 2u), target_weight(c + 3u));
}

// Settles the four columns of quad q of the sub-block at c0. The staged rows are those of the sub-block.
fn settle_quad(c0: u32, q: u32, quad: vec4<f32>) -> vec4<f32> {
    let c = c0 + q * 4u;
    let r = q * 16u + q;
    let x = settle(c, quad.x);
    let after_x = quad + x * coefficients[r];
    let y = settle(c + 1u, after_x.y);
    let after_y = after_x + y * coefficients[r + 4u];
    let z = settle(c + 2u, after_y.z);
    let after_z = after_y + z * coefficients[r + 8u];
    return vec4<f32>(x, y, z, settle(c + 3u, after_z.w));
}

// What quad q, settled with errors e, adds to quad `to`.
fn carry(e: vec4<f32>, q: u32, to: u32) -> vec4<f32> {
    let r = q * 16u + to;
    return e.x * coefficients[r] + e.y * coefficients[r + 4u] + e.z * coefficients[r + 8u] + e.w * coefficients[r + 12u];
}

// The whole block. `row` is set; `lane` is the invocation in its workgroup of 64.
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
                    error = settled(j0 + j);
                }
                t0 += error * coefficients[j * 4u];
                t1 += error * coefficients[j * 4u + 1u];
                t2 += error * coefficients[j * 4u + 2u];
                t3 += error * coefficients[j * 4u + 3u];
            }
        }
        stage(lane, c0, c0);
        let e0 = settle_quad(c0, 0u, t0);
        t1 += carry(e0, 0u, 1u);
        let e1 = settle_quad(c0, 1u, t1);
        t2 += carry(e0, 0u, 2u) + carry(e1, 1u, 2u);
        let e2 = settle_quad(c0, 2u, t2);
        t3 += carry(e0, 0u, 3u) + carry(e1, 1u, 3u) + carry(e2, 2u, 3u);
        settle_quad(c0, 3u, t3);
    }
}
