//! Virtual environments for the chores that need Python packages. An environment is made once, and updated when its list of
//! packages changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, Failure, Result};

/// A virtual environment with the packages of one of this crate's requirements files.
pub struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// Returns the environment in `folder`. Makes it if it does not exist, and installs the packages of the file `requirements`
    /// unless the last run installed the same list. The packages in `first` are installed before the others, because these may
    /// need them to be built.
    ///
    /// Errors: there is no Python with its `venv` module, or a package cannot be installed.
    pub fn prepare(folder: &Path, requirements: &str, first: &[&str]) -> Result<Self> {
        let requirements = process::root().join("xtask").join(requirements);
        let wanted = fs::read(&requirements)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", requirements.display())))?;
        let environment = Self { folder: folder.to_path_buf() };
        let stamp = folder.join("aquatint-requirements.txt");
        if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(environment);
        }
        if !environment.program("python").is_file() {
            environment.create()?;
        }
        if !first.is_empty() {
            let mut pip = environment.pip();
            process::step("packages", pip.arg("--constraint").arg(&requirements).args(first))?;
        }
        let mut pip = environment.pip();
        process::step("packages", pip.args(["--no-build-isolation", "--requirement"]).arg(&requirements))?;
        fs::write(&stamp, wanted)
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", stamp.display())))?;
        Ok(environment)
    }

    /// Returns the command that runs a script of this crate in the environment.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.program("python"));
        command.arg(process::root().join("xtask").join(name));
        command
    }

    fn create(&self) -> Result<()> {
        let python = if cfg!(windows) { "python" } else { "python3" };
        let made = process::step("environment", Command::new(python).args(["-m", "venv"]).arg(&self.folder));
        if made.is_err() {
            eprintln!(
                "xtask: this needs Python 3.11 or newer with venv (Debian, Ubuntu: apt-get install python3-venv)"
            );
        }
        made
    }

    fn pip(&self) -> Command {
        let mut command = Command::new(self.program("python"));
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        command
    }

    fn program(&self, name: &str) -> PathBuf {
        if cfg!(windows) {
            self.folder.join("Scripts").join(name).with_extension("exe")
        } else {
            self.folder.join("bin").join(name)
        }
    }
}
