//! Loads tensors of a checkpoint onto a device.
//!
//! A GPU receives a float tensor in pieces, in the element type of the file, and converts them to f32 itself. Host
//! memory thus holds no more than one piece. This matters in a browser, where a page never gives memory back once it
//! has taken it.

use std::ops::Range;

use super::reader::{Checkpoint, Floats};
use crate::Result;
use crate::device::{Recorder, Tensor};
use crate::ops::widen::widen;

impl Checkpoint {
    /// Loads the whole tensor `name` as f32 onto the device of `rec`. A packed weight is unpacked, and a transposed one is
    /// turned, on the CPU first.
    ///
    /// Errors: `Error::NotFinite` if the tensor holds a NaN or an infinity. A GPU reports this late: the next wait of
    /// `rec` fails (see [`Recorder::fail_if`]).
    pub async fn load(&self, rec: &mut Recorder, name: &str) -> Result<Tensor> {
        let shape = self.shape(name)?;
        if rec.is_gpu() && self.is_plain(name) {
            return self.stream(rec, &self.floats(name)?, shape).await;
        }
        let values = self.read(name).await?;
        rec.upload(shape, values)
    }

    /// Loads the rows `rows` of the tensor `name`, along its first dimension. Errors: as [`Checkpoint::load`], for
    /// these rows.
    pub async fn load_rows(&self, rec: &mut Recorder, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let mut shape = self.shape(name)?.to_vec();
        if let Some(count) = shape.first_mut() {
            *count = rows.len();
        }
        if rec.is_gpu() && self.is_plain(name) {
            return self.stream(rec, &self.float_rows(name, rows)?, &shape).await;
        }
        let values = self.read_rows(name, rows).await?;
        rec.upload(&shape, values)
    }

    /// Loads a float tensor piece by piece and converts it to f32 on the GPU.
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
