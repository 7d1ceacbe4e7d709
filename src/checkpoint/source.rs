//! The files of a checkpoint as sources of bytes: memory-mapped files natively, byte ranges of a `File` in a browser,
//! or bytes in memory. The reader works on the trait [`Source`] alone.

use std::borrow::Cow;
use std::ops::Range;

use futures::future::LocalBoxFuture;

use crate::{Error, Result};

/// One file of a checkpoint. It is read by byte ranges.
pub trait Source {
    /// File name without directory, such as `model.safetensors`.
    fn name(&self) -> &str;

    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes to read at a time when a tensor or a file is read in pieces. A piece takes this much host memory.
    fn piece(&self) -> u64 {
        8 << 20
    }

    /// Announces that `range` will be read soon, so that the system can start loading it.
    fn prefetch(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Announces that `range` was read and nothing borrows from it any more, so that the system can free its memory.
    fn release(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Reads the bytes of `range`, which must lie inside the file. The result is borrowed if the source is in memory or
    /// mapped.
    fn read(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Cow<'_, [u8]>>>;
}

/// Cuts `range` into pieces of `size` bytes. The last piece may be shorter.
pub(super) fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let count = (range.end - range.start).div_ceil(size);
    (0..count).map(move |i| range.start + i * size).map(move |start| start..range.end.min(start + size))
}

/// A file that is already in memory, such as one compiled into the program.
#[derive(Debug, Clone)]
pub struct MemorySource {
    name: String,
    bytes: Cow<'static, [u8]>,
}

impl MemorySource {
    /// A file called `name` with the content `bytes`.
    pub fn new(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Source for MemorySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Cow<'_, [u8]>>> {
        let bytes = slice(&self.bytes, range);
        Box::pin(async move { bytes.map(Cow::Borrowed) })
    }
}

/// The part `range` of `bytes`. Errors: `Error::Shape` if the caller's range is not inside.
fn slice(bytes: &[u8], range: Range<u64>) -> Result<&[u8]> {
    let inside = bytes.get(range.start as usize..range.end as usize);
    inside.ok_or_else(|| Error::shape("Source::read", format!("bytes {range:?} of {}", bytes.len())))
}

#[cfg(not(target_arch = "wasm32"))]
pub use native::{MappedFile, read_text_file};

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use super::*;
    use crate::calibration::TextFile;
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::time::SystemTime;

    /// A memory-mapped file. Pages are read when they are touched, and the system can drop them at any time.
    #[derive(Debug)]
    pub struct MappedFile {
        name: String,
        path: PathBuf,
        file: File,
        /// Time of the last change when the file was opened. `None` if the system does not tell.
        modified: Option<SystemTime>,
        map: memmap2::Mmap,
    }

    impl MappedFile {
        /// Maps the file at `path`. Errors: `Error::Io` if it cannot be opened or mapped.
        pub fn open(path: &Path) -> Result<Self> {
            let refuse = |source| read_error(path, source);
            let file = File::open(path).map_err(refuse)?;
            // SAFETY: a map is sound as long as nobody changes or truncates the file while the map lives. Checkpoints
            // are written once and then only read. Our own writer replaces a directory by renaming, which leaves mapped
            // files intact. Another program that overwrites a shard in place during a run breaks this contract; every
            // read checks for such a change.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(refuse)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
            Ok(Self { name, path: path.to_owned(), file, modified, map })
        }

        /// Checks that nobody has written to the file since it was opened. Errors: `Error::Input` if somebody has.
        fn check_unchanged(&self) -> Result<()> {
            let metadata = self.file.metadata().map_err(|source| read_error(&self.path, source))?;
            if metadata.len() == self.len() && metadata.modified().ok() == self.modified {
                return Ok(());
            }
            Err(Error::input(
                self.path.display().to_string(),
                "a file that was changed after the run had begun",
                "the same content to the end",
                "run again when nothing writes to it any more",
            ))
        }
    }

    impl Source for MappedFile {
        fn name(&self) -> &str {
            &self.name
        }

        fn len(&self) -> u64 {
            self.map.len() as u64
        }

        #[cfg(unix)]
        fn prefetch(&self, range: Range<u64>) {
            // If the system refuses this advice, reading is slower, and nothing else changes.
            let length = (range.end - range.start) as usize;
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start as usize, length);
        }

        #[cfg(unix)]
        fn release(&self, range: Range<u64>) {
            let (start, length) = (range.start as usize, (range.end - range.start) as usize);
            // SAFETY: the mapped file is only read, so dropped pages are loaded again with the same content when they
            // are touched.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
        }

        fn read(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Cow<'_, [u8]>>> {
            let bytes = self.check_unchanged().and_then(|()| slice(&self.map, range));
            Box::pin(async move { bytes.map(Cow::Borrowed) })
        }
    }

    /// Reads a whole text file, for [`crate::Calibration::from_texts`]. Errors: `Error::Io` if it cannot be read.
    pub fn read_text_file(path: &Path) -> Result<TextFile> {
        let bytes = std::fs::read(path).map_err(|source| read_error(path, source))?;
        Ok(TextFile { name: path.display().to_string(), bytes: bytes.into() })
    }

    fn read_error(path: &Path, source: std::io::Error) -> Error {
        let remedy = "check the path and its permissions".into();
        Error::Io { path: path.to_owned(), action: "read", source, remedy }
    }
}
