//! Turns the compiled wasm into the two files that `worker.js` imports, and checks their size.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use wasm_bindgen_cli_support::Bindgen;

/// The largest allowed size of both files, gzipped, in bytes.
const LARGEST_GZIPPED: u64 = 3_000_000;

/// Writes `aquatint_web.js` and `aquatint_web_bg.wasm` into `out`, and prints their size.
///
/// Errors: the wasm cannot be read or translated, or the files are too large.
pub fn run(wasm: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut bindgen = Bindgen::new();
    bindgen.input_path(wasm).out_name("aquatint_web").typescript(false).omit_default_module_path(false);
    bindgen.web(true)?.generate(out)?;
    let (mut bytes, mut gzipped) = (0, 0);
    for name in ["aquatint_web_bg.wasm", "aquatint_web.js"] {
        let mut counted = GzEncoder::new(Count(0), Compression::best());
        bytes += io::copy(&mut File::open(out.join(name))?, &mut counted)?;
        gzipped += counted.finish()?.0;
    }
    println!("wasm and its JavaScript: {:.2} MB, gzipped {:.2} MB", bytes as f64 / 1e6, gzipped as f64 / 1e6);
    if gzipped > LARGEST_GZIPPED {
        let limit = LARGEST_GZIPPED as f64 / 1e6;
        return Err(format!("the wasm is larger than the {limit} MB gzipped that it may have").into());
    }
    Ok(())
}

/// A writer that only counts its bytes.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
