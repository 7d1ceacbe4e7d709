//! Tensors on their way to a device. A GPU gets them in pieces, as they are stored, and widens them itself, so that host
//! memory holds no more than a piece: what a page in a browser has once taken it never gives back.

use std::ops::Range;

use super::reader::{Checkpoint, Floats};
use crate::Result;
use crate::device::{Recorder, Tensor};
use crate::ops::widen::widen;

impl Checkpoint {
    /// The whole tensor `name` as f32, on the device of `rec`. A quantized layer is dequantized on the CPU first.
    ///
    /// Errors: `Error::NotFinite` if it holds a NaN or an infinity. A GPU finds that out when it gets there, so it is the next
    /// wait of `rec` that fails (see [`Recorder::fail_if`]).
    pub async fn load(&self, rec: &mut Recorder, name: &str) -> Result<Tensor> {
        let shape = self.shape(name)?;
        if rec.is_gpu() && !self.is_quantized(name) {
            return self.stream(rec, &self.floats(name)?, shape).await;
        }
        let values = self.read(name).await?;
        rec.upload(shape, values)
    }

    /// Rows `rows` of the tensor `name`, along its first dimension. Errors: as [`Checkpoint::load`], for these rows.
    pub async fn load_rows(&self, rec: &mut Recorder, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let mut shape = self.shape(name)?.to_vec();
        if let Some(count) = shape.first_mut() {
            *count = rows.len();
        }
        if rec.is_gpu() && !self.is_quantized(name) {
            return self.stream(rec, &self.float_rows(name, rows)?, &shape).await;
        }
        let values = self.read_rows(name, rows).await?;
        rec.upload(&shape, values)
    }

    async fn stream(&self, rec: &mut Recorder, floats: &Floats<'_>, shape: &[usize]) -> Result<Tensor> {
        let source = self.file(floats.file);
        let mut tensor = rec.empty(shape)?;
        let mut flag = rec.zeros(&[1])?;
        for (piece, elements) in floats.pieces(source.piece()) {
            let words = rec.upload_bytes(&source.read(piece.clone()).await?)?;
            source.release(piece);
            widen(rec, floats.encoding, &words, elements, &mut tensor, &mut flag)?;
        }
        rec.fail_if(flag, self.not_finite(floats))?;
        Ok(tensor)
    }
}
