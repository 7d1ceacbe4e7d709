//! The memory that a run may use, and where it keeps hidden states that do not fit on the device.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Device;

/// Where the hidden states of the calibration tokens are kept while a group of linear layers is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On the device.
    Device,
    /// In host memory. One chunk of tokens at a time is on the device.
    Host,
    /// In a file. One chunk of tokens at a time is on the device.
    File,
}

/// How much memory a run may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of arrays on a GPU; on the CPU, bytes of the whole program. `None` is no limit. On a GPU an allocation beyond it fails.
    /// On the CPU the plan of the run stays below it.
    pub device: Option<u64>,
    /// Bytes that the program uses on the CPU besides arrays: for its code, the tokenizer and the calibration text.
    pub beside: u64,
    /// Bytes of host memory for hidden states that a GPU cannot hold. `None` is no limit.
    pub host: Option<u64>,
    /// The directory of the file for hidden states that host memory cannot hold either. `None` is the system's directory for
    /// temporary files.
    pub scratch: Option<PathBuf>,
    /// The fastest place that may hold hidden states. If they do not fit there, the next place is used.
    pub streams: Place,
    /// Whether to compute the inputs of the down projection again each time they are needed instead of keeping them. `None` does so
    /// where that costs less than the next place.
    pub recompute: Option<bool>,
    /// Tokens that go through a block together. A whole sequence always does, even if it is longer.
    pub chunk_tokens: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            device: None,
            beside: BESIDE,
            host: None,
            scratch: None,
            streams: Place::Device,
            recompute: None,
            chunk_tokens: CHUNK_TOKENS,
        }
    }
}

/// Bytes of a program that has read no text.
const BESIDE: u64 = 64 << 20;

/// Enough tokens to keep a GPU busy, and few enough that each array fits one binding.
const CHUNK_TOKENS: usize = 4096;

impl Place {
    /// This place and all slower ones that `device` has, fastest first. The CPU has no separate host memory. A browser has no files.
    pub fn and_below(self, device: &Device) -> &'static [Self] {
        let all: &[Self] = match device {
            Device::Cpu => &[Self::Device, Self::File],
            Device::Gpu(_) => &[Self::Device, Self::Host, Self::File],
        };
        let all = if cfg!(target_arch = "wasm32") { &all[..all.len() - 1] } else { all };
        let first = all.iter().position(|place| *place as u8 >= self as u8).unwrap_or(all.len() - 1);
        &all[first..]
    }
}

impl Memory {
    /// What to try next after `device` ran out of memory: half as many tokens at a time, and hidden states in the next place.
    /// `None` if neither is possible for sequences of `seq_len` tokens.
    pub fn less(&self, device: &Device, seq_len: usize) -> Option<Self> {
        let places = self.streams.and_below(device);
        if self.chunk_tokens <= seq_len && places.len() == 1 {
            return None;
        }
        let streams = *places.get(1).unwrap_or(&places[0]);
        Some(Self { streams, chunk_tokens: (self.chunk_tokens / 2).max(seq_len), ..self.clone() })
    }
}
