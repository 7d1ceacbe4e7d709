//! A soft bound on the size of numbers, such as the logits of Gemma. The shader is `softcap`.

use rayon::prelude::*;

use crate::device::{Dispatch, Recorder, Tensor};
use crate::ops::math::{tanh, vectorised};
use crate::ops::spread_elements;
use crate::{Error, Result};

uniform! {
    struct Params of "softcap" {
        count: u32,
        stride: u32,
        cap: f32,
    }
}

/// `x ← cap·tanh(x / cap)` for every element. `cap`: positive and finite. Errors: `Error::Shape` for another `cap`.
pub fn softcap(rec: &mut Recorder, x: &mut Tensor, cap: f32) -> Result<()> {
    if !(cap > 0.0 && cap.is_finite()) {
        return Err(Error::shape("softcap", format!("cap {cap}")));
    }
    if rec.is_gpu() {
        let (workgroups, stride) = spread_elements(x.len());
        let params = Params { count: x.len() as u32, stride, cap };
        return rec.dispatch(Dispatch {
            kernel: "softcap",
            params: bytemuck::bytes_of(&params),
            inputs: &[],
            outputs: &[x.buffer()],
            workgroups,
            work: 10.0 * x.len() as f64,
        });
    }
    x.host_mut().par_chunks_mut(1 << 14).for_each(|x| cpu(x, cap));
    Ok(())
}

/// The CPU twin. Attention bounds its scores with it, too.
pub(super) fn cpu(x: &mut [f32], cap: f32) {
    vectorised(
        #[inline(always)]
        || {
            for x in x.iter_mut() {
                *x = cap * tanh(*x / cap);
            }
        },
    );
}
