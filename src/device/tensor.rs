//! `Tensor`: a row-major array of `f32` or `u32` that lives in host memory or in a GPU buffer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::device::Buffer;
use crate::{Error, Result};

/// Element types that a shader can read: four bytes each.
pub trait Element: bytemuck::Pod + Default + PartialEq + std::fmt::Debug + Send + Sync {}
impl Element for f32 {}
impl Element for u32 {}

/// A dense row-major array. It belongs to the device whose [`Recorder`](crate::device::Recorder) made it.
#[derive(Debug)]
pub struct Tensor<T: Element = f32> {
    shape: Vec<usize>,
    storage: Storage<T>,
}

#[derive(Debug)]
enum Storage<T> {
    Host(Vec<T>),
    Gpu(Buffer),
}

/// Memory of dropped host tensors, for the next of the same size: the pages of a fresh allocation cost as much as many an
/// op on them. Bounded in all, oldest first out.
static FREE: Mutex<Vec<Vec<u32>>> = Mutex::new(Vec::new());
/// Bytes that [`FREE`] may hold.
static FREE_LIMIT: AtomicU64 = AtomicU64::new(MOST_FREE);
pub(crate) const MOST_FREE: u64 = 256 << 20;
/// Smaller arrays are left to the allocator.
const POOLED_FROM: usize = 1 << 14;

/// Keeps no more than `bytes` in dropped host tensors.
pub(crate) fn limit_free(bytes: u64) {
    FREE_LIMIT.store(MOST_FREE.min(bytes), Relaxed);
}

/// `len` elements of undefined value.
pub(crate) fn recycled<T: Element>(len: usize) -> Vec<T> {
    if len >= POOLED_FROM {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = free.iter().rposition(|values| values.len() == len) {
            return bytemuck::allocation::cast_vec(free.swap_remove(index));
        }
    }
    vec![T::default(); len]
}

impl<T: Element> Drop for Tensor<T> {
    fn drop(&mut self) {
        let Storage::Host(values) = &mut self.storage else { return };
        if values.len() < POOLED_FROM {
            return;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(bytemuck::allocation::cast_vec(std::mem::take(values)));
        while 4 * free.iter().map(Vec::len).sum::<usize>() as u64 > FREE_LIMIT.load(Relaxed) {
            free.remove(0);
        }
    }
}

impl<T: Element> Tensor<T> {
    pub(crate) fn on_host(shape: &[usize], values: Vec<T>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { shape: shape.to_vec(), storage: Storage::Host(values) }
    }

    pub(crate) fn on_gpu(shape: &[usize], buffer: Buffer) -> Self {
        Self { shape: shape.to_vec(), storage: Storage::Gpu(buffer) }
    }

    /// Extent of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The two extents of a matrix. Errors: `Error::Shape` naming `op` if this is no matrix.
    pub fn matrix(&self, op: &'static str) -> Result<[usize; 2]> {
        <[usize; 2]>::try_from(self.shape.as_slice())
            .map_err(|_| Error::shape(op, format!("a matrix is needed, the shape is {:?}", self.shape)))
    }

    /// Errors: `Error::Shape` naming `op` unless the shape is `expected`.
    pub fn expect_shape(&self, op: &'static str, expected: &[usize]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::shape(op, format!("the shape is {:?}, {expected:?} is needed", self.shape)))
    }

    /// The same elements under another shape. Errors: `Error::Shape` if the element counts differ.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshape", format!("{:?} cannot become {shape:?}", self.shape)));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The elements, for a CPU twin. Panics on a GPU tensor: an op must have branched before.
    pub(crate) fn host(&self) -> &[T] {
        match &self.storage {
            Storage::Host(values) => values,
            Storage::Gpu(_) => panic!("a CPU op was given a tensor of a GPU"),
        }
    }

    /// As [`Tensor::host`], writable.
    pub(crate) fn host_mut(&mut self) -> &mut [T] {
        match &mut self.storage {
            Storage::Host(values) => values,
            Storage::Gpu(_) => panic!("a CPU op was given a tensor of a GPU"),
        }
    }

    /// The buffer, for a dispatch. Panics on a host tensor: an op must have branched before.
    pub(crate) fn buffer(&self) -> &Buffer {
        match &self.storage {
            Storage::Gpu(buffer) => buffer,
            Storage::Host(_) => panic!("a GPU op was given a tensor of the CPU"),
        }
    }
}
