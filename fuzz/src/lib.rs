//! What the fuzz targets do, most of it shared with the tests of mutants (tests/suite/mutations).

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

/// Feeds a file to a parser. Panics if that does, or takes more memory than the file warrants.
pub fn feed(parser: fn(&[u8]), bytes: &[u8]) {
    if let Err(found) = allocation::check(parser, bytes) {
        panic!("{found}");
    }
}

/// Gets ready for [`feed`]: what is made once and kept is not the file's, and a panic that the parser catches is none. Writes
/// the good files to start from to the directory SEEDS, if that is set.
pub fn prepare(name: &str, parser: fn(&[u8])) {
    // libfuzzer-sys ends the process at every panic. A backtrace of each would take most of the time.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    parser(&[]);
    let Some(directory) = std::env::var_os("SEEDS").map(PathBuf::from) else { return };
    for (number, seed) in seeds::seeds(name).iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{number}")), seed).expect("a directory to write to");
    }
}

/// Writes the length of a safetensors header where it belongs, if the header is JSON: a mutation that changes the one but not
/// the other tests nothing but that. `weights` is the whole file.
pub fn mend_length(weights: &mut [u8]) {
    let Some((length, rest)) = weights.split_first_chunk_mut::<8>() else { return };
    let mut header = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
    if let Some(Ok(_)) = header.next() {
        *length = (header.byte_offset() as u64).to_le_bytes();
    }
}

/// The fuzz target for the parser of that name. `weights after`: where safetensors bytes begin in the file.
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
            // Now and then the length may be wrong.
            if !seed.is_multiple_of(8) {
                let start = start(&data[..size]);
                $crate::mend_length(&mut data[start..size]);
            }
            size
        });
    };
}
