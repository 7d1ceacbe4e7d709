//! Defines `Tensor`: a row-major array of `f32` or `u32`, in host memory or in a GPU buffer.
//!
//! A [`Recorder`](crate::device::Recorder) makes tensors, and the ops in `ops` compute with them. Large host arrays are
//! reused after they are dropped.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::device::Buffer;
use crate::{Error, Result};

/// An element type that a shader can read. An element has four bytes.
pub trait Element: bytemuck::Pod + Default + PartialEq + std::fmt::Debug + Send + Sync {}
impl Element for f32 {}
impl Element for u32 {}

/// A dense row-major array. It belongs to the device of the [`Recorder`](crate::device::Recorder) that made it.
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

/// Memory of dropped host tensors. The next tensor of the same length reuses it, because the pages of a fresh
/// allocation cost as much time as many an op on them. The total size is bounded by [`FREE_LIMIT`]; the oldest arrays
/// are freed first.
static FREE: Mutex<Vec<Vec<u32>>> = Mutex::new(Vec::new());
/// Largest total size of [`FREE`], in bytes.
static FREE_LIMIT: AtomicU64 = AtomicU64::new(MOST_FREE);
/// The default and the upper bound of [`FREE_LIMIT`], in bytes.
pub(crate) const MOST_FREE: u64 = 256 << 20;
/// Least number of elements of an array that is reused. Smaller arrays go back to the allocator.
const POOLED_FROM: usize = 1 << 14;

/// Sets the largest total size of dropped host tensors that are kept for reuse. `bytes` is capped at [`MOST_FREE`]. The
/// limit takes effect when the next large tensor is dropped.
pub(crate) fn limit_free(bytes: u64) {
    FREE_LIMIT.store(MOST_FREE.min(bytes), Relaxed);
}

/// Returns `len` elements with undefined values. Takes the memory of a dropped tensor of the same length if there is
/// one.
pub(crate) fn recycled<T: Element>(len: usize) -> Vec<T> {
    if len >= POOLED_FROM {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = free.iter().rposition(|values| values.len() == len) {
            return bytemuck::allocation::cast_vec(free.swap_remove(index));
        }
    }
    vec![T::default(); len]
}

/// Moves the memory of a large host tensor to the list of free arrays.
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
    /// A tensor in host memory. `shape` must have as many elements as `values`.
    pub(crate) fn on_host(shape: &[usize], values: Vec<T>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { shape: shape.to_vec(), storage: Storage::Host(values) }
    }

    /// A tensor in a GPU buffer.
    pub(crate) fn on_gpu(shape: &[usize], buffer: Buffer) -> Self {
        Self { shape: shape.to_vec(), storage: Storage::Gpu(buffer) }
    }

    /// The extent of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows and columns of a matrix. Errors: `Error::Shape` naming `op` if the tensor does not have two axes.
    pub fn matrix(&self, op: &'static str) -> Result<[usize; 2]> {
        <[usize; 2]>::try_from(self.shape.as_slice())
            .map_err(|_| Error::shape(op, format!("a matrix is needed, the shape is {:?}", self.shape)))
    }

    /// Checks the shape. Errors: `Error::Shape` naming `op` unless the shape is `expected`.
    pub fn expect_shape(&self, op: &'static str, expected: &[usize]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::shape(op, format!("the shape is {:?}, {expected:?} is needed", self.shape)))
    }

    /// Returns the same elements under another shape. Errors: `Error::Shape` if the numbers of elements differ.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshape", format!("{:?} cannot become {shape:?}", self.shape)));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The elements, for the CPU implementation of an op. Panics on a GPU tensor: the op must check the device first.
    pub(crate) fn host(&self) -> &[T] {
        match &self.storage {
            Storage::Host(values) => values,
            Storage::Gpu(_) => panic!("a CPU op was given a tensor of a GPU"),
        }
    }

    /// The elements for writing. Panics on a GPU tensor, like [`Tensor::host`].
    pub(crate) fn host_mut(&mut self) -> &mut [T] {
        match &mut self.storage {
            Storage::Host(values) => values,
            Storage::Gpu(_) => panic!("a CPU op was given a tensor of a GPU"),
        }
    }

    /// The GPU buffer, for a dispatch. Panics on a host tensor: the op must check the device first.
    pub(crate) fn buffer(&self) -> &Buffer {
        match &self.storage {
            Storage::Gpu(buffer) => buffer,
            Storage::Host(_) => panic!("a GPU op was given a tensor of the CPU"),
        }
    }
}
