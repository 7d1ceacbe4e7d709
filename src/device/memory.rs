//! What a run may hold, and where it puts what does not fit.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Device;

/// Where hidden states are between groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On the device.
    Device,
    /// In host memory; each chunk goes to the device when it is its turn.
    Host,
    /// In a file; likewise.
    File,
}

/// How much of a machine a run may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of arrays on the device, on the CPU of the whole program; `None`: as many as there are. A GPU is never asked for more;
    /// a plan for the CPU keeps to it.
    pub device: Option<u64>,
    /// Bytes that the program takes on the CPU before it has any arrays: itself, the tokenizer, the text.
    pub beside: u64,
    /// Bytes of hidden states in host memory, for a GPU that cannot hold them; `None`: as many as it takes.
    pub host: Option<u64>,
    /// The directory of a file for hidden states that neither of the two can hold; `None`: the system's for temporary files.
    pub scratch: Option<PathBuf>,
    /// Where hidden states may be: there, or where the next best place is.
    pub streams: Place,
    /// Whether what down reads is computed again each time instead of kept; `None`: where that is cheaper than the next best place.
    pub recompute: Option<bool>,
    /// Tokens that are processed together at most, but a sequence at least.
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

/// A program that has read no text.
const BESIDE: u64 = 64 << 20;

/// Enough tokens to fill a GPU, few enough to fit any binding.
const CHUNK_TOKENS: usize = 4096;

impl Place {
    /// The places that `device` has, from this one on, best first. To the CPU host memory is the device; a browser has no files.
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
    /// What to try after `device` had less memory than it said: half the tokens at a time, hidden states in the next best place.
    /// `None` where sequences of `seq_len` tokens leave nothing to give up.
    pub fn less(&self, device: &Device, seq_len: usize) -> Option<Self> {
        let places = self.streams.and_below(device);
        if self.chunk_tokens <= seq_len && places.len() == 1 {
            return None;
        }
        let streams = *places.get(1).unwrap_or(&places[0]);
        Some(Self { streams, chunk_tokens: (self.chunk_tokens / 2).max(seq_len), ..self.clone() })
    }
}
