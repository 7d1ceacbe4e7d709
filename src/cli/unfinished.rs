//! What `quantize` keeps beside its output while it runs, so that `--resume` can go on from there.
//!
//! `.NAME.aquatint-resume` beside NAME holds what decides the result and a record of each finished block. Its lock file
//! keeps a second run away from the same output.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aquatint::pipeline::{DirectoryJournal, Journal};
use aquatint::{Error, Result};

use super::fingerprint::Fingerprint;
use super::write_json;

/// The state of a run that is not finished.
pub struct Unfinished {
    directory: PathBuf,
    /// Directories around it that were not there, deepest first.
    missing: Vec<PathBuf>,
    _lock: File,
    journal: DirectoryJournal,
    finished: bool,
}

/// What to do with records that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Go on from them.
    Resume,
    /// Drop them.
    Discard,
    /// Drop them unless they belong to this very run.
    Protect,
}

impl Unfinished {
    /// Prepares to keep the blocks of the run that `fingerprint` describes and that writes to `out`.
    ///
    /// Errors: `Error::Input` if another program is at it, if the records to go on from were made with something else, or if
    /// they are this run's and `earlier` protects them.
    pub fn open(out: &Path, fingerprint: &Fingerprint, earlier: Earlier) -> Result<Self> {
        let refuse = |source| io_error(out, source);
        let out = std::path::absolute(out).map_err(refuse)?;
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return Err(Error::input(out.display().to_string(), "no last name", "a directory", "choose another --out"));
        };
        let name = name.to_string_lossy();
        let directory = parent.join(format!(".{name}.aquatint-resume"));
        let missing = parent.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(&directory).map_err(refuse)?;
        let lock = File::create(directory.join("lock")).map_err(refuse)?;
        if fs4::FileExt::try_lock(&lock).is_err() {
            let found = "another run that writes there";
            return Err(Error::input(
                out.display().to_string(),
                found,
                "no other",
                "wait for it, or choose another --out",
            ));
        }
        remove_leftovers(parent, &format!(".{name}.aquatint-")).map_err(refuse)?;
        let journal = DirectoryJournal::open(&directory);
        let mut unfinished = Self { directory, missing, _lock: lock, journal, finished: false };
        let difference = unfinished.difference(fingerprint);
        match (earlier, difference) {
            _ if unfinished.blocks() == 0 => unfinished.start(fingerprint)?,
            (Earlier::Resume, None) => {}
            (Earlier::Resume, Some(difference)) => {
                let (found, expected) = (format!("a run made with {difference}"), "one with what is asked for now");
                return Err(Error::input(
                    "--resume",
                    found,
                    expected,
                    "ask for the same, or add --force to start again",
                ));
            }
            (Earlier::Protect, None) => {
                let found = format!("{} finished blocks of this very run", unfinished.blocks());
                let remedy = "add --resume to go on from them, or --force to start again";
                return Err(Error::input(out.display().to_string(), found, "no unfinished run", remedy));
            }
            (Earlier::Protect | Earlier::Discard, _) => unfinished.start(fingerprint)?,
        }
        Ok(unfinished)
    }

    /// How many blocks are done.
    pub fn blocks(&self) -> usize {
        self.journal.blocks()
    }

    /// Where the run keeps its blocks.
    pub fn journal(&mut self) -> &mut DirectoryJournal {
        &mut self.journal
    }

    /// Forgets the blocks: the output is whole.
    pub fn finish(mut self) {
        self.finished = true;
    }

    /// What the records were made with, as a phrase, if it is not `fingerprint`.
    fn difference(&self, fingerprint: &Fingerprint) -> Option<String> {
        let read = || serde_json::from_slice::<Fingerprint>(&fs::read(self.description()).ok()?).ok();
        match read() {
            Some(found) => found.difference(fingerprint),
            None => Some("something unknown".to_string()),
        }
    }

    /// Drops all records, and begins with what decides the result.
    fn start(&mut self, fingerprint: &Fingerprint) -> Result<()> {
        let clear = || -> std::io::Result<()> {
            for entry in fs::read_dir(&self.directory)? {
                let path = entry?.path();
                if path.extension().is_some() {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        clear().map_err(|source| io_error(&self.directory, source))?;
        self.journal = DirectoryJournal::open(&self.directory);
        write_json(&self.description(), fingerprint)
    }

    fn description(&self) -> PathBuf {
        self.directory.join("run.json")
    }
}

impl Drop for Unfinished {
    /// Leaves nothing behind that nobody can go on from.
    fn drop(&mut self) {
        if self.finished || self.blocks() == 0 {
            // A directory that cannot be removed is no reason to fail a run; the next one clears it.
            let _ = fs::remove_dir_all(&self.directory);
            for parent in &self.missing {
                let _ = fs::remove_dir(parent);
            }
        }
    }
}

/// Removes what runs that were killed had begun to write. Nobody else is at it: the lock is ours.
fn remove_leftovers(parent: &Path, prefix: &str) -> std::io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_string_lossy().strip_prefix(prefix).map(|rest| rest.parse::<u32>().is_ok());
        if process == Some(true) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), action: "write beside", source, remedy: "choose another --out".into() }
}
