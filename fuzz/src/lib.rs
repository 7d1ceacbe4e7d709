//! The common code of the fuzz targets. It shares the parsers, the seeds and the memory limit with the test suite
//! (tests/suite/mutations). The targets are in `fuzz/targets`, one file each.

#[path = "../../tests/suite/mutations/allocation.rs"]
mod allocation;
#[path = "../../tests/suite/mutations/seeds.rs"]
mod seeds;
#[allow(dead_code)]
#[path = "../../tests/suite/small_model/mod.rs"]
mod small_model;
#[path = "../../tests/suite/mutations/targets.rs"]
pub mod targets;

use std::path::PathBuf;

use serde::de::IgnoredAny;

/// Feeds a file to a parser. Panics if the parser panics or holds more memory than allowed for a file of this size.
pub fn feed(parser: fn(&[u8]), bytes: &[u8]) {
    if let Err(found) = allocation::check(parser, bytes) {
        panic!("{found}");
    }
}

/// Prepares a process for [`feed`]. It runs the parser once, so that values which are made once and kept are not counted as memory
/// of a file. It replaces the panic hook, so that a panic which the parser catches does not end the process. If the variable SEEDS
/// is set, it writes the seeds, valid files to start from, to that directory.
pub fn prepare(name: &str, parser: fn(&[u8])) {
    // The hook of libfuzzer-sys ends the process at every panic. This one prints no backtrace, which would take most of the time.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    parser(&[]);
    let Some(directory) = std::env::var_os("SEEDS").map(PathBuf::from) else { return };
    for (number, seed) in seeds::seeds(name).iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{number}")), seed).expect("a directory to write to");
    }
}

/// Corrects the length field of a safetensors file if its header is JSON. A mutation that changes the header but not the length
/// would only test the check of the length. `weights` is the whole file.
pub fn mend_length(weights: &mut [u8]) {
    let Some((length, rest)) = weights.split_first_chunk_mut::<8>() else { return };
    let mut header = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
    if let Some(Ok(_)) = header.next() {
        *length = (header.byte_offset() as u64).to_le_bytes();
    }
}

/// Defines the fuzz target of a parser in [`targets`]. `weights after`: a function that returns the byte at which the safetensors
/// part of the file begins.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        libfuzzer_sys::fuzz_target!(
            init: $crate::prepare(stringify!($name), $crate::targets::$name),
            |bytes: &[u8]| $crate::feed($crate::targets::$name, bytes)
        );
    };
    ($name:ident, weights after $start:expr) => {
        $crate::target!($name);
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
            let start: fn(&[u8]) -> usize = $start;
            // One mutation in eight keeps a wrong length.
            if !seed.is_multiple_of(8) {
                let start = start(&data[..size]);
                $crate::mend_length(&mut data[start..size]);
            }
            size
        });
    };
}
