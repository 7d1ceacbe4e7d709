//! The storage buffers of a GPU, and how many bytes of them there may be.
//!
//! Making a buffer is slow, so a dropped one goes back to a pool and the next array of a similar size gets it. That is safe
//! although the GPU may still use it: commands that are recorded later also run later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// A storage buffer. It returns to the pool of its GPU when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// `None` only while `drop` runs. The buffer may be larger than `size`.
    buffer: Option<wgpu::Buffer>,
    /// Bytes that were asked for.
    size: u64,
    pool: Arc<Pool>,
}

impl Buffer {
    pub(super) fn new(buffer: wgpu::Buffer, size: u64, pool: Arc<Pool>) -> Self {
        Self { buffer: Some(buffer), size, pool }
    }

    /// The wgpu buffer, for copies.
    pub(super) fn raw(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("the buffer is only taken by Drop")
    }

    /// The bytes that were asked for, for a bind group.
    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        let size = wgpu::BufferSize::new(self.size);
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: self.raw(), offset: 0, size })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            lock(&self.pool.free).entry(buffer.size()).or_default().push(buffer);
        }
    }
}

/// The free buffers of a GPU, and the count of all its buffers' bytes.
#[derive(Debug)]
pub(super) struct Pool {
    /// Free buffers by their size.
    free: Mutex<HashMap<u64, Vec<wgpu::Buffer>>>,
    /// Bytes of all buffers, free or in use.
    held: AtomicU64,
    /// The largest value of `held` since the limit was set.
    peak: AtomicU64,
    /// `held` may never exceed this.
    limit: AtomicU64,
    /// Before `held` exceeds this, free buffers are destroyed.
    trim_above: AtomicU64,
}

impl Pool {
    /// An empty pool without limits.
    pub(super) fn new() -> Self {
        Self {
            free: Mutex::default(),
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            trim_above: AtomicU64::new(u64::MAX),
        }
    }

    /// Takes a free buffer of exactly `size` bytes out of the pool, if there is one.
    pub(super) fn take(&self, size: u64) -> Option<wgpu::Buffer> {
        lock(&self.free).get_mut(&size).and_then(Vec::pop)
    }

    /// Makes room for `size` more bytes, by destroying free buffers if need be. Returns whether there is room.
    pub(super) fn make_room(&self, size: u64) -> bool {
        let trim_above = self.trim_above.load(Relaxed).min(self.limit.load(Relaxed));
        if self.held.load(Relaxed) + size > trim_above {
            self.trim();
        }
        self.held.load(Relaxed) + size <= self.limit.load(Relaxed)
    }

    /// Counts a buffer of `size` bytes that was just made.
    pub(super) fn count(&self, size: u64) {
        let held = self.held.fetch_add(size, Relaxed) + size;
        self.peak.fetch_max(held, Relaxed);
    }

    /// Destroys all free buffers.
    pub(super) fn trim(&self) {
        let free = std::mem::take(&mut *lock(&self.free));
        let bytes: u64 = free.values().flatten().map(wgpu::Buffer::size).sum();
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// Sets how many bytes all buffers may have together, and counts the peak anew.
    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
        self.reset_peak();
    }

    /// Sets above how many bytes free buffers are destroyed before another is made.
    pub(super) fn set_trim_above(&self, bytes: u64) {
        self.trim_above.store(bytes, Relaxed);
    }

    /// Destroys all free buffers, and counts the peak anew from what is in use.
    pub(super) fn reset_peak(&self) {
        self.trim();
        self.peak.store(self.held.load(Relaxed), Relaxed);
    }

    /// The most bytes that all buffers have had together since the peak was reset.
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }
}

/// Rounds a size up to a sixteenth of the next power of two, so that arrays of nearly the same size can share buffers.
pub(super) fn size_class(size: u64) -> u64 {
    let step = (size.next_power_of_two() / 16).max(256);
    size.next_multiple_of(step)
}

/// Locks a mutex even if another thread panicked while it held it. No update here can be left half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
