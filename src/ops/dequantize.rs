//! Dequantization: the weights that codes, scales, and zero points or offsets stand for. Every program that loads a quantized checkpoint
//! computes the same. The shader is `dequantize`.

use rayon::prelude::*;

use crate::Result;
use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::grid::{Grid, GridSpec};
use crate::ops::spread_elements;

uniform! {
    struct Params of "dequantize" {
        count: u32,
        columns: u32,
        groups: u32,
        group_size: u32,
        stride: u32,
        offsets: u32,
    }
}

/// Returns `s·(q − z) + o`, `[m, n]`, where z or o is 0.
///
/// `codes`: q, `[m, n]`; `grid`: s, and z or o, `[m, groups]`.
/// Errors: `Error::Shape` if the shapes do not match.
pub fn dequantize(rec: &mut Recorder, codes: &Tensor<u32>, grid: &Grid, spec: &GridSpec) -> Result<Tensor> {
    let (group_size, offsets) = (spec.group_size, spec.has_offsets());
    let [rows, columns] = codes.matrix("dequantize")?;
    let groups = columns.div_ceil(group_size);
    grid.scales.expect_shape("dequantize", &[rows, groups])?;
    grid.zeros.expect_shape("dequantize", &[rows, groups])?;
    let mut values = rec.empty(&[rows, columns])?;
    if !rec.is_gpu() {
        let cells = grid.scales.host().par_chunks(groups).zip(grid.zeros.host().par_chunks(groups));
        let out = values.host_mut().par_chunks_mut(columns);
        out.zip(codes.host().par_chunks(columns)).zip(cells).for_each(|((values, codes), (scales, zeros))| {
            let pieces = values.chunks_mut(group_size).zip(codes.chunks(group_size));
            for ((values, codes), (&scale, &zero)) in pieces.zip(scales.iter().zip(zeros)) {
                let (zero, offset) = if offsets { (0.0, zero) } else { (zero, 0.0) };
                for (value, &code) in values.iter_mut().zip(codes) {
                    *value = scale * (code as f32 - zero) + offset;
                }
            }
        });
        return Ok(values);
    }
    let (workgroups, stride) = spread_elements(codes.len());
    let params = Params {
        count: codes.len() as u32,
        columns: columns as u32,
        groups: groups as u32,
        group_size: group_size as u32,
        stride,
        offsets: u32::from(offsets),
    };
    rec.dispatch(Dispatch {
        kernel: "dequantize",
        params: bytemuck::bytes_of(&params),
        inputs: &[codes.buffer(), grid.scales.buffer(), grid.zeros.buffer()],
        outputs: &[values.buffer()],
        workgroups,
        work: 2.0 * codes.len() as f64,
    })?;
    Ok(values)
}
