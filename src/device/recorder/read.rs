//! What comes back to the host: the values of arrays, and flags by which ops report an error.
//!
//! A read copies the arrays into one buffer that the host can map, submits, and waits until the buffer is mapped. No other future
//! of this crate waits for the work of a GPU.

use std::sync::Arc;

use super::{Recorder, Recording};
use crate::device::{Element, Gpu, Tensor};
use crate::{Error, Result};

/// The values of an array on their way to the host. [`Recorder::end_read`] waits for them.
#[derive(Debug)]
pub struct Reading(Source);

#[derive(Debug)]
enum Source {
    Host(Vec<f32>),
    Gpu(ReadBack),
}

/// A copy that the GPU is making for the host.
#[derive(Debug)]
struct ReadBack {
    buffer: wgpu::Buffer,
    submission: Option<wgpu::SubmissionIndex>,
    /// Resolves once the buffer is mapped.
    mapped: futures::channel::oneshot::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
}

/// A copy that the host can read.
struct MappedCopy {
    gpu: Arc<Gpu>,
    buffer: wgpu::Buffer,
}

impl MappedCopy {
    fn with_bytes<R>(self, f: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let bytes = self.buffer.get_mapped_range(..).map_err(|e| self.gpu.error(e))?;
        Ok(f(&bytes))
    }
}

impl Recorder {
    /// Fails with `error` if an op has set `flag`, an array of one element, to anything but 0.
    ///
    /// Errors: `error`, on the CPU. On a GPU the flag is not known yet: the next [`Recorder::read`], [`Recorder::read_all`] or
    /// [`Recorder::finish`] of this recorder returns the error.
    pub fn fail_if(&mut self, flag: Tensor<u32>, error: Error) -> Result<()> {
        flag.expect_shape("fail_if", &[1])?;
        match &mut self.recording {
            Some(r) => r.flags.push((flag, error)),
            None if flag.host() == [0] => {}
            None => return Err(error),
        }
        Ok(())
    }

    /// Waits for all recorded commands and returns the elements of `tensor`.
    ///
    /// Errors: whatever the GPU reported since the last wait, or the error of the first flag that is set.
    pub async fn read<T: Element>(&mut self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        if self.recording.is_none() {
            return Ok(tensor.host().to_vec());
        }
        Ok(self.read_all(&[tensor]).await?.swap_remove(0))
    }

    /// As [`Recorder::read`], for several arrays with one wait.
    pub async fn read_all<T: Element>(&mut self, tensors: &[&Tensor<T>]) -> Result<Vec<Vec<T>>> {
        match &mut self.recording {
            None => Ok(tensors.iter().map(|tensor| tensor.host().to_vec()).collect()),
            Some(_) if tensors.iter().all(|tensor| tensor.is_empty()) => Ok(vec![Vec::new(); tensors.len()]),
            Some(r) => r.read(tensors).await,
        }
    }

    /// Submits all recorded commands and waits for them. Errors: as [`Recorder::read`].
    pub async fn finish(&mut self) -> Result<()> {
        if self.is_gpu() {
            let marker = self.zeros::<u32>(&[1])?;
            self.read(&marker).await?;
        }
        Ok(())
    }

    /// Submits all recorded commands, and then a copy of `tensor` to the host. More can be recorded while the copy is made.
    ///
    /// Errors: whatever the GPU reported since the last call.
    pub fn begin_read(&mut self, tensor: &Tensor) -> Result<Reading> {
        Ok(Reading(match &mut self.recording {
            None => Source::Host(tensor.host().to_vec()),
            Some(_) if tensor.is_empty() => Source::Host(Vec::new()),
            Some(r) => Source::Gpu(r.begin_read(&[(tensor.buffer().raw().clone(), tensor.len() as u64 * 4)])?),
        }))
    }

    /// Waits for the copy that [`Recorder::begin_read`] began, and not for anything recorded after it. Flags are not looked at.
    ///
    /// Errors: whatever the GPU reported since the last wait.
    pub async fn end_read(&mut self, reading: Reading) -> Result<Vec<f32>> {
        match (reading.0, &mut self.recording) {
            (Source::Host(values), _) => Ok(values),
            (Source::Gpu(copy), Some(r)) => r.end_read(copy).await?.with_bytes(bytemuck::pod_collect_to_vec),
            (Source::Gpu(_), None) => unreachable!("a recorder of the CPU began no reading of a GPU"),
        }
    }
}

impl Recording {
    /// Submits a copy of the first bytes of each buffer to the host, one after the other.
    fn begin_read(&mut self, parts: &[(wgpu::Buffer, u64)]) -> Result<ReadBack> {
        let size = parts.iter().map(|(_, size)| size).sum();
        let buffer = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.gpu.check_faults(size, "a read-back")?;
        let mut end = 0;
        for (part, size) in parts {
            self.copy_encoder().copy_buffer_to_buffer(part, 0, &buffer, end, *size);
            end += size;
        }
        let submission = self.submit()?;
        let (sender, mapped) = futures::channel::oneshot::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // Sending fails only if the future that reads was dropped.
            let _ = sender.send(result);
        });
        Ok(ReadBack { buffer, submission, mapped })
    }

    /// Waits until a copy is on the host.
    async fn end_read(&mut self, ReadBack { buffer, submission, mapped }: ReadBack) -> Result<MappedCopy> {
        self.wait(submission)?;
        let mapped = mapped.await.map_err(|e| self.gpu.error(e))?;
        self.gpu.check_faults(buffer.size(), "a read-back")?;
        mapped.map_err(|e| self.gpu.error(e))?;
        Ok(MappedCopy { gpu: self.gpu.clone(), buffer })
    }

    /// The elements of `tensors`. They travel together with all flags. Errors: the error of the first flag that is set.
    async fn read<T: Element>(&mut self, tensors: &[&Tensor<T>]) -> Result<Vec<Vec<T>>> {
        let flags = self.flags.iter().map(|(flag, _)| (flag.buffer().raw().clone(), 4));
        let wanted = tensors.iter().map(|tensor| (tensor.buffer().raw().clone(), tensor.len() as u64 * 4));
        let parts: Vec<_> = wanted.chain(flags).filter(|(_, size)| *size > 0).collect();
        let copy = self.begin_read(&parts)?;
        let mapped = self.end_read(copy).await?;
        self.unfinished.finish(&self.gpu.pace);
        let flagged = std::mem::take(&mut self.flags);
        mapped.with_bytes(|bytes| {
            let (mut values, flags) = bytes.split_at(bytes.len() - 4 * flagged.len());
            let errors = flagged.into_iter().map(|(_, error)| error);
            if let Some((_, error)) = flags.as_chunks().0.iter().zip(errors).find(|(flag, _)| **flag != [0; 4]) {
                return Err(error);
            }
            let mut next = |tensor: &&Tensor<T>| {
                let (first, rest) = values.split_at(tensor.len() * 4);
                values = rest;
                bytemuck::pod_collect_to_vec(first)
            };
            Ok(tensors.iter().map(&mut next).collect())
        })?
    }
}
