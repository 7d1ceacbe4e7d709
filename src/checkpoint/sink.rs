//! The destination of a checkpoint that is being written. Natively this is a directory, or one file for formats that have
//! no more than one; the trait leaves room for the private file system of a browser.

use std::io;

use futures::future::LocalBoxFuture;

/// Receives files one after the other. At the end, all of them become visible at once, or none does.
pub trait Sink {
    /// The name of the destination in messages.
    fn name(&self) -> &str;

    /// Bytes that can still be stored. `None` if this cannot be known.
    fn available(&self) -> io::Result<Option<u64>>;

    /// Completes the previous file, if any, and starts the file `file`.
    fn create<'a>(&'a mut self, file: &'a str) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Appends `chunk` to the current file.
    fn write<'a>(&'a mut self, chunk: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>>;

    /// Completes the last file and moves all files to their final place.
    fn commit(&mut self) -> LocalBoxFuture<'_, io::Result<()>>;

    /// Removes everything that was written. Runs in a destructor when writing is abandoned, so it cannot report errors.
    fn abort(&mut self);
}

#[cfg(not(target_arch = "wasm32"))]
pub use native::{DirectorySink, Existing, FileSink};

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use super::*;
    use crate::checkpoint::belongs;
    use crate::error::{Phrase, Setting, phrase};
    use crate::{Error, Result};
    use std::ffi::OsStr;
    use std::fs::{self, File};
    use std::io::Write;
    use std::path::{Path, PathBuf};

    /// What to do if the destination already has files in it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Existing {
        /// Leave them alone and report an error.
        Refuse,
        /// Replace the directory or file, once the new one is complete.
        Replace,
    }

    /// The final place of a result, and the hidden place beside it where the result is made.
    #[derive(Debug)]
    struct Place {
        name: String,
        target: PathBuf,
        temporary: PathBuf,
        existing: Existing,
        /// Parents of the target that did not exist before, deepest first. `abort` removes them again.
        missing_parents: Vec<PathBuf>,
    }

    impl Place {
        /// The place `out`. `kind`: what is to be created there. Errors: `Error::Input` if the path has no last name; `Error::Io`
        /// if it cannot be resolved.
        fn new(out: &Path, existing: Existing, kind: &str) -> Result<Self> {
            let name = out.display().to_string();
            let target = resolve(out).map_err(|source| io_error(out, source))?;
            let (Some(parent), Some(file_name)) = (target.parent(), target.file_name()) else {
                let expected = format!("the path of a {kind} to create");
                return Err(Error::input(name, "a path without a last name", expected, choose_another()));
            };
            let temporary = parent.join(format!(".{}.aquatint-{}", file_name.to_string_lossy(), std::process::id()));
            let missing_parents =
                parent.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_owned).collect();
            Ok(Self { name, target, temporary, existing, missing_parents })
        }

        /// The error for a place that cannot be used.
        fn refused<T>(&self, found: &str, expected: &str) -> Result<T> {
            Err(Error::input(&self.name, found, expected, choose_another()))
        }

        /// The error for a place that is taken.
        fn taken<T>(&self, found: &str, expected: &str) -> Result<T> {
            let remedy = choose_another().then(phrase![", or add ", Setting::Replace, " to replace it"]);
            Err(Error::input(&self.name, found, expected, remedy))
        }

        /// Bytes that can still be stored beside the target.
        fn available(&self) -> io::Result<Option<u64>> {
            let existing = self.target.ancestors().skip(1).find(|ancestor| ancestor.exists());
            existing.map(fs4::available_space).transpose()
        }

        /// Removes the directories that were made around the target, as far as they are empty.
        fn remove_parents(&self) {
            for parent in &self.missing_parents {
                let _ = fs::remove_dir(parent);
            }
        }
    }

    /// Writes into a hidden directory beside the final one and renames it at the end.
    #[derive(Debug)]
    pub struct DirectorySink {
        place: Place,
        current: Option<File>,
    }

    impl DirectorySink {
        /// Prepares to write to `out`, without touching the disk yet. `model` is the directory that the weights come
        /// from.
        ///
        /// Errors: `Error::Input` if `out` is the directory `model`, lies in it or contains it; if `out` is a file; or
        /// if it has files in it and `existing` does not allow replacing them. `Error::Io` if a path cannot be
        /// resolved.
        pub fn new(out: &Path, existing: Existing, model: Option<&Path>) -> Result<Self> {
            let place = Place::new(out, existing, "directory")?;
            let target = &place.target;
            if let Some(model) = model {
                let model = resolve(model).map_err(|source| io_error(model, source))?;
                if target.starts_with(&model) || model.starts_with(target) {
                    let expected = "a directory apart from the model's";
                    return place.refused("the model's own directory, or one inside or around it", expected);
                }
            }
            if target.exists() && !target.is_dir() {
                return place.refused("a file", "a directory, or nothing");
            }
            if existing == Existing::Refuse && !is_vacant(target).map_err(|source| io_error(out, source))? {
                return place.taken("a directory with files in it", "an empty directory, or nothing");
            }
            Ok(Self { place, current: None })
        }

        /// Completes the current file and creates the next one.
        fn start(&mut self, file: &str) -> io::Result<()> {
            self.complete()?;
            if !self.place.temporary.exists() {
                fs::create_dir_all(&self.place.temporary)?;
            }
            self.current = Some(File::create(self.place.temporary.join(file))?);
            Ok(())
        }

        /// Writes the current file through to the disk and closes it.
        fn complete(&mut self) -> io::Result<()> {
            self.current.take().map_or(Ok(()), |file| file.sync_all())
        }

        /// Moves the hidden directory to the final place. A previous directory is first renamed, and removed at the
        /// end.
        fn publish(&mut self) -> io::Result<()> {
            self.complete()?;
            if is_vacant(&self.place.target)? {
                if self.place.target.exists() {
                    fs::remove_dir(&self.place.target)?;
                }
                return fs::rename(&self.place.temporary, &self.place.target);
            }
            if self.place.existing == Existing::Refuse {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "files have appeared there meanwhile"));
            }
            let mut previous = self.place.temporary.clone().into_os_string();
            previous.push(".old");
            fs::rename(&self.place.target, &previous)?;
            fs::rename(&self.place.temporary, &self.place.target).inspect_err(|_| {
                // Restore the previous directory. If that fails as well, the first error is still the one to report.
                let _ = fs::rename(&previous, &self.place.target);
            })?;
            fs::remove_dir_all(&previous)
        }
    }

    impl Sink for DirectorySink {
        fn name(&self) -> &str {
            &self.place.name
        }

        fn available(&self) -> io::Result<Option<u64>> {
            self.place.available()
        }

        fn create<'a>(&'a mut self, file: &'a str) -> LocalBoxFuture<'a, io::Result<()>> {
            Box::pin(async move { self.start(file) })
        }

        fn write<'a>(&'a mut self, chunk: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
            Box::pin(async move { append(self.current.as_mut(), chunk) })
        }

        fn commit(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
            Box::pin(async move { self.publish() })
        }

        fn abort(&mut self) {
            self.current = None;
            // If the directory cannot be removed, nothing can be done, and there is no way to report it.
            let _ = fs::remove_dir_all(&self.place.temporary);
            self.place.remove_parents();
        }
    }

    /// Writes into a hidden file beside the final one and renames it at the end. It takes a single file, to which it gives
    /// its own name.
    #[derive(Debug)]
    pub struct FileSink {
        place: Place,
        current: Option<File>,
    }

    impl FileSink {
        /// Prepares to write to `out`, without touching the disk yet. `model` is the directory that the weights come
        /// from, or their file.
        ///
        /// Errors: `Error::Input` if `out` is a directory or a file of the model, or if it exists and `existing` does not
        /// allow replacing it. `Error::Io` if a path cannot be resolved.
        pub fn new(out: &Path, existing: Existing, model: Option<&Path>) -> Result<Self> {
            let place = Place::new(out, existing, "file")?;
            let target = &place.target;
            if let Some(model) = model {
                let model = resolve(model).map_err(|source| io_error(model, source))?;
                let own = |name: &OsStr| target.parent() == Some(&model) && belongs(&name.to_string_lossy());
                if *target == model || target.file_name().is_some_and(own) {
                    return place.refused("a file of the model itself", "a file apart from the model's");
                }
            }
            if target.is_dir() {
                return place.refused("a directory", "a file, or nothing");
            }
            if existing == Existing::Refuse && target.exists() {
                return place.taken("a file that exists", "nothing");
            }
            Ok(Self { place, current: None })
        }

        /// Creates the hidden file.
        fn start(&mut self) -> io::Result<()> {
            if self.current.is_some() {
                return Err(io::Error::other("a second file where there is room for one"));
            }
            self.place.temporary.parent().map_or(Ok(()), fs::create_dir_all)?;
            self.current = Some(File::create(&self.place.temporary)?);
            Ok(())
        }

        /// Writes the hidden file through to the disk and moves it to the final place.
        fn publish(&mut self) -> io::Result<()> {
            self.current.take().map_or(Ok(()), |file| file.sync_all())?;
            if self.place.existing == Existing::Refuse && self.place.target.exists() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file has appeared there meanwhile"));
            }
            fs::rename(&self.place.temporary, &self.place.target)
        }
    }

    impl Sink for FileSink {
        fn name(&self) -> &str {
            &self.place.name
        }

        fn available(&self) -> io::Result<Option<u64>> {
            self.place.available()
        }

        fn create<'a>(&'a mut self, _: &'a str) -> LocalBoxFuture<'a, io::Result<()>> {
            Box::pin(async move { self.start() })
        }

        fn write<'a>(&'a mut self, chunk: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
            Box::pin(async move { append(self.current.as_mut(), chunk) })
        }

        fn commit(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
            Box::pin(async move { self.publish() })
        }

        fn abort(&mut self) {
            self.current = None;
            // If the file cannot be removed, nothing can be done, and there is no way to report it.
            let _ = fs::remove_file(&self.place.temporary);
            self.place.remove_parents();
        }
    }

    /// Appends `chunk` to the current file of a sink.
    fn append(file: Option<&mut File>, chunk: &[u8]) -> io::Result<()> {
        match file {
            Some(file) => file.write_all(chunk),
            None => Err(io::Error::other("no file was started")),
        }
    }

    /// Makes `path` absolute and resolves symbolic links in the part of it that exists.
    fn resolve(path: &Path) -> io::Result<PathBuf> {
        let path = std::path::absolute(path)?;
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(&path);
        let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
        let resolved = existing.canonicalize()?;
        Ok(if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) })
    }

    /// Whether the path does not exist or is an empty directory.
    fn is_vacant(directory: &Path) -> io::Result<bool> {
        match fs::read_dir(directory) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn io_error(path: &Path, source: io::Error) -> Error {
        Error::Io { path: path.to_owned(), action: "use", source, remedy: choose_another() }
    }

    fn choose_another() -> Phrase {
        phrase!["choose another ", Setting::Out]
    }
}
