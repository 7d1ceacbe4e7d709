//! `--memory`: the memory that a run may take, and sentences about what it plans to take and what it took.

use std::path::{Path, PathBuf};

use aquatint::device::{Device, Memory, Place};
use aquatint::record::{Plan, Report};
use aquatint::{Error, Result};
use bytesize::ByteSize;
use clap::Args;
use indicatif::HumanBytes;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::speed::{anonymous_memory, peak_memory};

#[derive(Debug, Default, Args)]
pub struct MemoryArgs {
    /// Memory to take on the device, such as 6GB or 512MiB [default: nine tenths of what it reports; of the CPU's three quarters].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Directory for hidden states that fit neither the device nor host memory [default: beside the output].
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

/// Bytes that the program takes beside arrays, where the system does not say.
const BESIDE: u64 = 256 << 20;

impl MemoryArgs {
    /// The memory of a run on `device`. Hidden states that fit nowhere else go beside `out`, the output of the run.
    ///
    /// Errors: `Error::Input` naming `--scratch` if it is no directory.
    pub fn resolve(&self, device: &Device, out: Option<&Path>) -> Result<Memory> {
        if let Some(directory) = self.scratch.as_deref().filter(|directory| !directory.is_dir()) {
            let found = format!("'{}', which is no directory", directory.display());
            return Err(Error::input("--scratch", found, "a directory that is there", "make it, or choose another"));
        }
        let host = host_bytes();
        let asked = self.memory.map(|size| size.as_u64());
        let bytes = match device {
            Device::Cpu => asked.or(host.map(|bytes| bytes / 4 * 3)),
            Device::Gpu(_) => asked.or(device.memory().map(|bytes| bytes / 10 * 9)),
        };
        let beside = out.and_then(|out| Some(std::path::absolute(out).ok()?.parent()?.to_owned()));
        let scratch = self.scratch.clone().or(beside.filter(|directory| directory.is_dir()));
        // Rounded up, so that the same run has the same plan each time.
        let beside = anonymous_memory().map_or(BESIDE, |bytes| bytes.next_multiple_of(64 << 20));
        Ok(Memory { device: bytes, beside, host: host.map(|bytes| bytes / 2), scratch, ..Memory::default() })
    }
}

/// Bytes of memory of the machine, or of the program's control group if that has less.
fn host_bytes() -> Option<u64> {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    let group = system.cgroup_limits().map(|limits| limits.total_memory);
    Some(group.unwrap_or(u64::MAX).min(system.total_memory())).filter(|bytes| *bytes > 0)
}

/// Where hidden states are, as a phrase.
pub fn place(place: Place) -> &'static str {
    match place {
        Place::Device => "on the device",
        Place::Host => "in host memory",
        Place::File => "in a file",
    }
}

/// A plan as a phrase.
pub fn describe(plan: &Plan) -> String {
    let bytes = plan.host_bytes + plan.file_bytes;
    let streams = match bytes {
        0 => String::new(),
        _ => format!(", {} of hidden states {}", HumanBytes(bytes), place(plan.streams)),
    };
    let computed = if plan.recompute { ", what down reads computed again instead of kept" } else { "" };
    format!("about {} on the device{streams}{computed}", HumanBytes(plan.device_bytes))
}

/// The planned memory and the peak, as a sentence.
pub fn summary(report: &Report) -> String {
    let planned = report.plan.as_ref().map_or("nothing".to_string(), describe);
    let device =
        report.peak_device_bytes.map_or(String::new(), |bytes| format!("{} on the device, ", HumanBytes(bytes)));
    let host = peak_memory().map_or("not told by this system".to_string(), |bytes| HumanBytes(bytes).to_string());
    format!("memory: planned {planned}; at most {device}{host} in this process")
}
