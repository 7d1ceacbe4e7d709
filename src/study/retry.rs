//! A run on a device that has less memory than it says: again, with less.

use crate::device::{Device, Memory, Recorder};
use crate::observer::{Event, Observer};
use crate::{Error, Result};

/// Attempts a run within `memory`, and again with less memory each time the device runs out of it.
///
/// `attempt` gets a new recorder each time. `observer` gets `Event::Retry` before every attempt but the first. `seq_len`: tokens per
/// window, the fewest that can be processed together.
///
/// Errors: `Error::OutOfMemory` if there is nothing left to give up; any other error of `attempt` at once.
pub async fn with_less_memory<T>(
    device: &Device,
    mut memory: Memory,
    seq_len: usize,
    observer: &mut dyn Observer,
    mut attempt: impl AsyncFnMut(&mut Recorder, &mut dyn Observer) -> Result<T>,
) -> Result<T> {
    loop {
        let mut rec = Recorder::new(device);
        rec.set_memory(memory.clone());
        let error = match attempt(&mut rec, observer).await {
            Err(error @ Error::OutOfMemory { .. }) => error,
            other => return other,
        };
        memory = match memory.less(device, seq_len) {
            Some(less) => less,
            None => return Err(error),
        };
        rec.trim();
        let (chunk_tokens, streams) = (memory.chunk_tokens, memory.streams);
        observer.event(&Event::Retry { reason: error.phrase(), chunk_tokens, streams });
    }
}
