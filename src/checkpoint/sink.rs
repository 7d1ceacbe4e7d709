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

    /// Writes into a hidden directory beside the final one and renames it at the end.
    #[derive(Debug)]
    pub struct DirectorySink {
        name: String,
        target: PathBuf,
        temporary: PathBuf,
        existing: Existing,
        /// Parents of the target that did not exist before, deepest first. `abort` removes them again.
        missing_parents: Vec<PathBuf>,
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
            let name = out.display().to_string();
            let refuse = |found: &str, expected: &str| Err(Error::input(&name, found, expected, choose_another()));
            let target = resolve(out).map_err(|source| io_error(out, source))?;
            let (Some(parent), Some(file_name)) = (target.parent(), target.file_name()) else {
                return refuse("a path without a last name", "the path of a directory to create");
            };
            if let Some(model) = model {
                let model = resolve(model).map_err(|source| io_error(model, source))?;
                if target.starts_with(&model) || model.starts_with(&target) {
                    let expected = "a directory apart from the model's";
                    return refuse("the model's own directory, or one inside or around it", expected);
                }
            }
            if target.exists() && !target.is_dir() {
                return refuse("a file", "a directory, or nothing");
            }
            if existing == Existing::Refuse && !is_vacant(&target).map_err(|source| io_error(out, source))? {
                let (found, expected) = ("a directory with files in it", "an empty directory, or nothing");
                let remedy = choose_another().then(phrase![", or add ", Setting::Replace, " to replace it"]);
                return Err(Error::input(name, found, expected, remedy));
            }
            let (temporary, missing_parents) = (hidden(parent, file_name), missing(parent));
            Ok(Self { name, target, temporary, existing, missing_parents, current: None })
        }

        /// Completes the current file and creates the next one.
        fn start(&mut self, file: &str) -> io::Result<()> {
            self.complete()?;
            if !self.temporary.exists() {
                fs::create_dir_all(&self.temporary)?;
            }
            self.current = Some(File::create(self.temporary.join(file))?);
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
            if is_vacant(&self.target)? {
                if self.target.exists() {
                    fs::remove_dir(&self.target)?;
                }
                return fs::rename(&self.temporary, &self.target);
            }
            if self.existing == Existing::Refuse {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "files have appeared there meanwhile"));
            }
            let mut previous = self.temporary.clone().into_os_string();
            previous.push(".old");
            fs::rename(&self.target, &previous)?;
            fs::rename(&self.temporary, &self.target).inspect_err(|_| {
                // Restore the previous directory. If that fails as well, the first error is still the one to report.
                let _ = fs::rename(&previous, &self.target);
            })?;
            fs::remove_dir_all(&previous)
        }
    }

    impl Sink for DirectorySink {
        fn name(&self) -> &str {
            &self.name
        }

        fn available(&self) -> io::Result<Option<u64>> {
            available_beside(&self.target)
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
            let _ = fs::remove_dir_all(&self.temporary);
            remove_parents(&self.missing_parents);
        }
    }

    /// Writes into a hidden file beside the final one and renames it at the end. It takes a single file, to which it gives
    /// its own name.
    #[derive(Debug)]
    pub struct FileSink {
        name: String,
        target: PathBuf,
        temporary: PathBuf,
        existing: Existing,
        /// Parents of the target that did not exist before, deepest first. `abort` removes them again.
        missing_parents: Vec<PathBuf>,
        current: Option<File>,
    }

    impl FileSink {
        /// Prepares to write to `out`, without touching the disk yet. `model` is the directory that the weights come
        /// from, or their file.
        ///
        /// Errors: `Error::Input` if `out` is a directory or a file of the model, or if it exists and `existing` does not
        /// allow replacing it. `Error::Io` if a path cannot be resolved.
        pub fn new(out: &Path, existing: Existing, model: Option<&Path>) -> Result<Self> {
            let name = out.display().to_string();
            let refuse = |found: &str, expected: &str| Err(Error::input(&name, found, expected, choose_another()));
            let target = resolve(out).map_err(|source| io_error(out, source))?;
            let (Some(parent), Some(file_name)) = (target.parent(), target.file_name()) else {
                return refuse("a path without a last name", "the path of a file to create");
            };
            if let Some(model) = model {
                let model = resolve(model).map_err(|source| io_error(model, source))?;
                if target == model || (parent == model && belongs(&file_name.to_string_lossy())) {
                    return refuse("a file of the model itself", "a file apart from the model's");
                }
            }
            if target.is_dir() {
                return refuse("a directory", "a file, or nothing");
            }
            if existing == Existing::Refuse && target.exists() {
                let remedy = choose_another().then(phrase![", or add ", Setting::Replace, " to replace it"]);
                return Err(Error::input(name, "a file that exists", "nothing", remedy));
            }
            let (temporary, missing_parents) = (hidden(parent, file_name), missing(parent));
            Ok(Self { name, target, temporary, existing, missing_parents, current: None })
        }

        /// Creates the hidden file.
        fn start(&mut self) -> io::Result<()> {
            if self.current.is_some() {
                return Err(io::Error::other("a second file where there is room for one"));
            }
            self.temporary.parent().map_or(Ok(()), fs::create_dir_all)?;
            self.current = Some(File::create(&self.temporary)?);
            Ok(())
        }

        /// Writes the hidden file through to the disk and moves it to the final place.
        fn publish(&mut self) -> io::Result<()> {
            self.current.take().map_or(Ok(()), |file| file.sync_all())?;
            if self.existing == Existing::Refuse && self.target.exists() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file has appeared there meanwhile"));
            }
            fs::rename(&self.temporary, &self.target)
        }
    }

    impl Sink for FileSink {
        fn name(&self) -> &str {
            &self.name
        }

        fn available(&self) -> io::Result<Option<u64>> {
            available_beside(&self.target)
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
            let _ = fs::remove_file(&self.temporary);
            remove_parents(&self.missing_parents);
        }
    }

    /// Appends `chunk` to the current file of a sink.
    fn append(file: Option<&mut File>, chunk: &[u8]) -> io::Result<()> {
        match file {
            Some(file) => file.write_all(chunk),
            None => Err(io::Error::other("no file was started")),
        }
    }

    /// The path of the hidden file or directory that becomes `file_name` in `parent` at the end.
    fn hidden(parent: &Path, file_name: &OsStr) -> PathBuf {
        parent.join(format!(".{}.aquatint-{}", file_name.to_string_lossy(), std::process::id()))
    }

    /// `parent` and the directories around it that do not exist, deepest first.
    fn missing(parent: &Path) -> Vec<PathBuf> {
        parent.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_owned).collect()
    }

    /// Removes the directories `parents`, deepest first, as far as they are empty.
    fn remove_parents(parents: &[PathBuf]) {
        for parent in parents {
            let _ = fs::remove_dir(parent);
        }
    }

    /// Bytes that can still be stored beside `target`.
    fn available_beside(target: &Path) -> io::Result<Option<u64>> {
        let existing = target.ancestors().skip(1).find(|ancestor| ancestor.exists());
        existing.map(fs4::available_space).transpose()
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
