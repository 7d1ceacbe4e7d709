//! A temporary file for the hidden states that fit no memory. `stream` writes the values of each chunk to it and reads
//! them back.

#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::Scratch;

/// In a browser there are no files. No plan uses one, so this type has no values.
#[cfg(target_arch = "wasm32")]
pub(super) enum Scratch {}

#[cfg(target_arch = "wasm32")]
impl Scratch {
    pub fn new(_: Option<&std::path::Path>) -> crate::Result<Self> {
        Err(crate::Error::shape("scratch", "a file in a browser"))
    }

    pub fn read(&self, _: usize, _: usize) -> crate::Result<Vec<f32>> {
        match *self {}
    }

    pub fn store(&mut self, _: &[f32]) -> crate::Result<usize> {
        match *self {}
    }

    pub fn release(&mut self, _: usize, _: usize) {
        match *self {}
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::ops::Range;
    use std::path::{Path, PathBuf};

    use crate::device::recycled;
    use crate::error::{Setting, phrase};
    use crate::{Error, Result};

    /// A file without a name. The system removes it when the program ends in any way. Positions in the file are counted
    /// in elements.
    pub struct Scratch {
        file: File,
        directory: PathBuf,
        space: Space,
    }

    impl Scratch {
        /// Creates a file in `directory`, or in the system's directory for temporary files. Errors: `Error::Io`.
        pub fn new(directory: Option<&Path>) -> Result<Self> {
            let directory = directory.map_or_else(std::env::temp_dir, Path::to_owned);
            let file = tempfile::tempfile_in(&directory).map_err(|source| io_error(&directory, source))?;
            Ok(Self { file, directory, space: Space::default() })
        }

        /// Reads `len` elements, starting at element `first`. Errors: `Error::Io`.
        pub fn read(&self, first: usize, len: usize) -> Result<Vec<f32>> {
            let mut values = recycled(len);
            let mut read = || {
                (&self.file).seek(position(first))?;
                (&self.file).read_exact(bytemuck::cast_slice_mut(&mut values))
            };
            read().map_err(|source| io_error(&self.directory, source))?;
            Ok(values)
        }

        /// Writes `values` to the first free part that is large enough. Returns the position of their first element.
        /// Errors: `Error::Io`.
        pub fn store(&mut self, values: &[f32]) -> Result<usize> {
            let first = self.space.take(values.len());
            let write = || {
                (&self.file).seek(position(first))?;
                (&self.file).write_all(bytemuck::cast_slice(values))
            };
            write().map_err(|source| io_error(&self.directory, source))?;
            Ok(first)
        }

        /// Frees the part of `len` elements that starts at element `first`.
        pub fn release(&mut self, first: usize, len: usize) {
            self.space.give_back(first..first + len);
        }
    }

    /// The free parts of a file: those in `free`, and everything from `end` on. The parts in `free` lie before `end`,
    /// are in order, and do not touch each other.
    #[derive(Debug, Default)]
    struct Space {
        free: Vec<Range<usize>>,
        end: usize,
    }

    impl Space {
        /// Takes the first free part of `len` elements. Returns its position.
        fn take(&mut self, len: usize) -> usize {
            match self.free.iter().position(|free| free.len() >= len) {
                Some(index) => {
                    let first = self.free[index].start;
                    self.free[index].start += len;
                    if self.free[index].is_empty() {
                        self.free.remove(index);
                    }
                    first
                }
                None => {
                    let first = self.end;
                    self.end += len;
                    first
                }
            }
        }

        /// Frees a part, and joins it with the free parts that it touches.
        fn give_back(&mut self, part: Range<usize>) {
            if part.is_empty() {
                return;
            }
            let index = self.free.partition_point(|free| free.end <= part.start);
            self.free.insert(index, part);
            if index + 1 < self.free.len() && self.free[index].end == self.free[index + 1].start {
                self.free[index].end = self.free.remove(index + 1).end;
            }
            if index > 0 && self.free[index - 1].end == self.free[index].start {
                self.free[index - 1].end = self.free.remove(index).end;
            }
            if self.free.last().is_some_and(|last| last.end == self.end) {
                self.end = self.free.pop().map_or(self.end, |last| last.start);
            }
        }
    }

    /// The position of an element in bytes.
    fn position(element: usize) -> SeekFrom {
        SeekFrom::Start(element as u64 * size_of::<f32>() as u64)
    }

    /// The error of an operation on the file in `directory`.
    fn io_error(directory: &Path, source: std::io::Error) -> Error {
        let remedy = phrase!["choose another directory with ", Setting::Scratch, ", or allow more ", Setting::Memory];
        Error::Io { path: directory.to_owned(), action: "keep hidden states in", source, remedy }
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn places_never_overlap_and_all_come_back(steps in prop::collection::vec((1usize..50, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
                let (mut space, mut taken) = (Space::default(), Vec::<Range<usize>>::new());
                for (len, index, take) in steps {
                    if take || taken.is_empty() {
                        let first = space.take(len);
                        let part = first..first + len;
                        prop_assert!(taken.iter().all(|other| other.end <= part.start || part.end <= other.start));
                        prop_assert!(part.end <= space.end);
                        taken.push(part);
                    } else {
                        space.give_back(taken.swap_remove(index.index(taken.len())));
                    }
                }
                taken.into_iter().for_each(|part| space.give_back(part));
                prop_assert_eq!((space.free, space.end), (vec![], 0));
            }
        }
    }
}
