//! Uploads from the host, and copies within the device.

use super::{Recorder, Recording};
use crate::device::{Buffer, Element, Tensor};
use crate::{Error, Result};

/// Bytes that are uploaded between two looks at whether the GPU keeps up.
const UPLOADS_PER_WAIT: u64 = 256 << 20;

/// The uploads of a recorder that may still be on their way. wgpu keeps a copy of them in host memory until they have arrived.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Bytes that were written since `mark`.
    bytes: u64,
    /// The submission that comes after all earlier uploads.
    mark: Option<wgpu::SubmissionIndex>,
}

impl Recorder {
    /// An array of these values, which are in row-major order.
    ///
    /// Errors: `Error::Shape` if their number does not fit the shape, `Error::OutOfMemory`.
    pub fn upload<T: Element>(&mut self, shape: &[usize], values: Vec<T>) -> Result<Tensor<T>> {
        if self.recording.is_some() || shape.iter().product::<usize>() != values.len() {
            return self.upload_slice(shape, &values);
        }
        Ok(Tensor::on_host(shape, values))
    }

    /// As [`Recorder::upload`], from values that stay with the caller.
    pub fn upload_slice<T: Element>(&mut self, shape: &[usize], values: &[T]) -> Result<Tensor<T>> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::shape("upload", format!("{} values for the shape {shape:?}", values.len())));
        }
        let mut tensor: Tensor<T> = self.empty(shape)?;
        match &mut self.recording {
            None => tensor.host_mut().copy_from_slice(values),
            Some(r) => r.write(tensor.buffer(), 0, bytemuck::cast_slice(values))?,
        }
        Ok(tensor)
    }

    /// An array of little-endian words, four bytes each. Zero bytes fill up the last word.
    ///
    /// Errors: `Error::OutOfMemory`.
    pub fn upload_bytes(&mut self, bytes: &[u8]) -> Result<Tensor<u32>> {
        let (whole, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let last = if rest.is_empty() { &[][..] } else { &[last] };
        let shape = [whole.len() + last.len()];
        if self.recording.is_none() {
            let words = whole.iter().chain(last).map(|&word| u32::from_le_bytes(word)).collect();
            return Ok(Tensor::on_host(&shape, words));
        }
        let tensor: Tensor<u32> = self.empty(&shape)?;
        let Some(r) = &mut self.recording else { unreachable!("checked above") };
        r.write(tensor.buffer(), 0, whole.as_flattened())?;
        r.write(tensor.buffer(), whole.len() as u64 * 4, last.as_flattened())?;
        Ok(tensor)
    }

    /// A copy of `tensor`. Errors: `Error::OutOfMemory`.
    pub fn duplicate<T: Element>(&mut self, tensor: &Tensor<T>) -> Result<Tensor<T>> {
        if self.recording.is_none() {
            return Ok(Tensor::on_host(tensor.shape(), tensor.host().to_vec()));
        }
        let copy: Tensor<T> = self.empty(tensor.shape())?;
        self.copy(tensor, 0, &copy, 0, tensor.len());
        Ok(copy)
    }

    /// Copies rows `start..start + count` of a matrix into a new one.
    ///
    /// Errors: `Error::Shape` if there are no such rows, `Error::OutOfMemory`.
    pub fn copy_rows<T: Element>(&mut self, from: &Tensor<T>, start: usize, count: usize) -> Result<Tensor<T>> {
        let [rows, columns] = from.matrix("copy_rows")?;
        if start + count > rows {
            return Err(Error::shape("copy_rows", format!("rows {start}..{} of {rows}", start + count)));
        }
        if self.recording.is_none() {
            let values = from.host()[start * columns..(start + count) * columns].to_vec();
            return Ok(Tensor::on_host(&[count, columns], values));
        }
        let copy: Tensor<T> = self.empty(&[count, columns])?;
        self.copy(from, start * columns, &copy, 0, count * columns);
        Ok(copy)
    }

    /// Overwrites rows of `to`, beginning with row `start`, by all rows of `from`.
    ///
    /// Errors: `Error::Shape` if they do not fit.
    pub fn write_rows<T: Element>(&mut self, from: &Tensor<T>, to: &mut Tensor<T>, start: usize) -> Result<()> {
        let ([count, columns], [rows, to_columns]) = (from.matrix("write_rows")?, to.matrix("write_rows")?);
        if columns != to_columns || start + count > rows {
            let detail = format!("{:?} into {:?} at row {start}", from.shape(), to.shape());
            return Err(Error::shape("write_rows", detail));
        }
        if self.recording.is_none() {
            to.host_mut()[start * columns..(start + count) * columns].copy_from_slice(from.host());
        } else {
            self.copy(from, 0, to, start * columns, count * columns);
        }
        Ok(())
    }

    /// Records a copy of `len` elements between two arrays on the GPU.
    fn copy<T: Element>(&mut self, from: &Tensor<T>, from_start: usize, to: &Tensor<T>, to_start: usize, len: usize) {
        let recording = self.recording.as_mut().expect("both tensors are on a GPU");
        let [from_start, to_start, len] = [from_start, to_start, len].map(|elements| elements as u64 * 4);
        let (from, to) = (from.buffer().raw(), to.buffer().raw());
        recording.copy_encoder().copy_buffer_to_buffer(from, from_start, to, to_start, len);
    }
}

impl Recording {
    /// Writes `bytes` into a buffer that was just allocated.
    fn write(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        // The queue runs the write before commands that are not submitted yet, and those may still use this pooled buffer.
        self.submit()?;
        if !bytes.is_empty() {
            self.gpu.queue.write_buffer(buffer.raw(), offset, bytes);
        }
        self.uploads.bytes += bytes.len() as u64;
        if self.uploads.bytes > UPLOADS_PER_WAIT {
            // Uploads up to the mark before this one must have arrived, so at most about twice this many bytes are on their way.
            self.uploads.bytes = 0;
            let mark = self.gpu.queue.submit([]);
            if let Some(earlier) = self.uploads.mark.replace(mark) {
                self.wait(Some(earlier))?;
            }
        }
        Ok(())
    }
}
