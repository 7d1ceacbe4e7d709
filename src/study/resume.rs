//! The directory in which a run keeps its finished blocks, so that it can be resumed after it was stopped.
//!
//! The output NAME has a hidden directory `.NAME.aquatint-resume` beside it. It holds the fingerprint of the run and a record of
//! each finished block. A lock file in it keeps a second run away from the same output.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::files::write_json;
use super::fingerprint::{Difference, Fingerprint};
use crate::error::{Phrase, Setting, phrase};
use crate::pipeline::{DirectoryJournal, Journal};
use crate::{Error, Result};

/// The records of a run that is not finished.
///
/// Dropped, it stays for a later run to resume from, unless it holds no block or [`finish`](Self::finish) was called.
pub struct ResumeDirectory {
    /// The output, as an absolute path.
    out: PathBuf,
    directory: PathBuf,
    /// Directories around it that did not exist before, deepest first.
    created_parents: Vec<PathBuf>,
    _lock: File,
    journal: DirectoryJournal,
    finished: bool,
}

/// What to do with the records of an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlierRecords {
    /// Resume from them; refuse those of another run.
    Resume,
    /// Discard them.
    Discard,
    /// Discard those of another run; refuse to start over if they are of this one.
    Protect,
}

impl ResumeDirectory {
    /// Opens the directory of the run that writes to `out` and that `fingerprint` describes.
    ///
    /// Errors: `Error::Input` if another program uses it, if it holds records of another run that were to be resumed, or if it holds
    /// records of this run that `earlier` protects; `Error::Io`.
    pub fn open(out: &Path, fingerprint: &Fingerprint, earlier: EarlierRecords) -> Result<Self> {
        let mut opened = Self::lock(out)?;
        if opened.blocks() == 0 {
            opened.clear(fingerprint)?;
            return Ok(opened);
        }
        match (earlier, opened.difference(fingerprint)) {
            (EarlierRecords::Resume, None) => {}
            (EarlierRecords::Resume, Some(mismatch)) => return Err(mismatch.refusal(fingerprint)),
            (EarlierRecords::Protect, None) => {
                let found = format!("{} finished blocks of this very run", opened.blocks());
                let remedy =
                    phrase!["add ", Setting::Journal, " to go on from them, or ", Setting::Replace, " to start again"];
                return Err(Error::input(opened.out.display().to_string(), found, "no unfinished run", remedy));
            }
            (EarlierRecords::Protect | EarlierRecords::Discard, _) => opened.clear(fingerprint)?,
        }
        Ok(opened)
    }

    /// Creates the directory if there is none, locks it, and removes what killed runs left beside it.
    fn lock(out: &Path) -> Result<Self> {
        let refuse = |source| io_error(out, source);
        let out = std::path::absolute(out).map_err(refuse)?;
        let input_error = |found: &str, expected: &str, remedy: Phrase| {
            Err(Error::input(out.display().to_string(), found, expected, remedy))
        };
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return input_error("no last name", "a directory", choose_another());
        };
        let name = name.to_string_lossy();
        let directory = parent.join(format!(".{name}.aquatint-resume"));
        let created_parents =
            parent.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(&directory).map_err(refuse)?;
        let lock = File::create(directory.join("lock")).map_err(refuse)?;
        if fs4::FileExt::try_lock(&lock).is_err() {
            let remedy = phrase!["wait for it, or "].then(choose_another());
            return input_error("another run that writes there", "no other", remedy);
        }
        remove_leftovers(parent, &format!(".{name}.aquatint-")).map_err(refuse)?;
        let journal = DirectoryJournal::open(&directory);
        Ok(Self { out, directory, created_parents, _lock: lock, journal, finished: false })
    }

    /// How many blocks are finished.
    pub fn blocks(&self) -> usize {
        self.journal.blocks()
    }

    /// The records of the finished blocks, to which the run adds.
    pub fn journal(&mut self) -> &mut DirectoryJournal {
        &mut self.journal
    }

    /// Removes the directory. Call it when the output is complete.
    pub fn finish(mut self) {
        self.finished = true;
    }

    /// Why the records do not belong to the run of `fingerprint`; `None` if they do.
    fn difference(&self, fingerprint: &Fingerprint) -> Option<Mismatch> {
        let read = || serde_json::from_slice::<Fingerprint>(&fs::read(self.fingerprint_file()).ok()?).ok();
        match read() {
            Some(found) => found.difference(fingerprint).map(Mismatch::Fingerprint),
            None => Some(Mismatch::Unreadable),
        }
    }

    /// Removes all records and writes the fingerprint.
    fn clear(&mut self, fingerprint: &Fingerprint) -> Result<()> {
        let remove_records = || -> io::Result<()> {
            for entry in fs::read_dir(&self.directory)? {
                let path = entry?.path();
                // The lock is the one file without an extension.
                if path.extension().is_some() {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        remove_records().map_err(|source| io_error(&self.directory, source))?;
        self.journal = DirectoryJournal::open(&self.directory);
        write_json(&self.fingerprint_file(), fingerprint)
    }

    fn fingerprint_file(&self) -> PathBuf {
        self.directory.join("run.json")
    }
}

impl Drop for ResumeDirectory {
    fn drop(&mut self) {
        if self.finished || self.blocks() == 0 {
            // A run does not fail because the directory cannot be removed. The next run clears it.
            let _ = fs::remove_dir_all(&self.directory);
            for parent in &self.created_parents {
                let _ = fs::remove_dir(parent);
            }
        }
    }
}

const ASKED_FOR: &str = "one with what is asked for now";
const ASK_FOR_THE_SAME: &str = "ask for the same";

/// Why records cannot be resumed.
enum Mismatch {
    /// There is no readable fingerprint.
    Unreadable,
    /// They were made with something else.
    Fingerprint(Difference),
}

impl Mismatch {
    fn refusal(self, expected: &Fingerprint) -> Error {
        let (made_with, expected, remedy): (Phrase, Phrase, &str) = match self {
            Self::Fingerprint(difference @ Difference::Kernels(_)) => {
                let expected = format!("revision {}, which this program has", expected.kernels);
                (difference.phrase(), expected.into(), "resume it with the program that began it")
            }
            Self::Fingerprint(difference) => (difference.phrase(), ASKED_FOR.into(), ASK_FOR_THE_SAME),
            Self::Unreadable => ("something unknown".into(), ASKED_FOR.into(), ASK_FOR_THE_SAME),
        };
        let found = phrase!["a run made with ", made_with];
        let remedy = phrase![remedy, ", or add ", Setting::Replace, " to start again"];
        Error::input(Setting::Journal, found, expected, remedy)
    }
}

/// Removes the unfinished outputs of killed runs. No living run has one, since this run holds the lock.
fn remove_leftovers(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_string_lossy().strip_prefix(prefix).map(|rest| rest.parse::<u32>().is_ok());
        match process {
            Some(true) if entry.file_type()?.is_dir() => fs::remove_dir_all(entry.path())?,
            Some(true) => fs::remove_file(entry.path())?,
            _ => {}
        }
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), action: "write beside", source, remedy: choose_another() }
}

fn choose_another() -> Phrase {
    phrase!["choose another ", Setting::Out]
}
