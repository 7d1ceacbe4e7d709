//! Runs commands for the chores: it prints each command, measures its time, and reports failures. The folders of the workspace
//! are here too, and what makes folders and files.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// The failure of a chore: one line for the reader, and the exit code of xtask.
#[derive(Debug, PartialEq)]
pub struct Failure {
    line: String,
    code: u8,
}

/// The result of a chore or of one of its steps.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with exit code 1.
    pub fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), code: 1 }
    }

    /// Prints the line and returns the exit code.
    pub fn report(self) -> ExitCode {
        eprintln!("xtask: {}", self.line);
        ExitCode::from(self.code)
    }
}

/// Returns the root of the workspace. Cargo names the folder of this crate when it runs the program. If the program was started
/// without cargo, the folder of its compilation is used.
pub fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = own.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    own.parent().map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// Returns cargo's target folder. The chores keep their downloads and results there.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Makes a folder with those around it, unless it is there.
///
/// Errors: the folder cannot be made.
pub fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .map_err(|error| Failure::new(format!("cannot make the folder {}: {error}", folder.display())))
}

/// Makes an empty file, also in place of an old one.
///
/// Errors: the file cannot be written.
pub fn create_file(path: &Path) -> Result<File> {
    File::create(path).map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

/// Tells whether this is a run of continuous integration, in which no check may be skipped.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// Returns `cargo ARGUMENTS`, to be run in the root of the workspace. It is the cargo that started xtask.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Returns `cargo SUBCOMMAND --bin aquatint` in release mode. It runs in the user's current folder, so that relative paths in its
/// arguments are resolved there.
pub fn aquatint(subcommand: &str) -> Command {
    let mut command = cargo([subcommand, "--release", "--bin", "aquatint", "--manifest-path"]);
    command.arg(root().join("Cargo.toml"));
    if let Ok(folder) = std::env::current_dir() {
        command.current_dir(folder);
    }
    command
}

/// Returns the path of the program that `aquatint build` makes.
pub fn program() -> PathBuf {
    target().join("release").join("aquatint").with_extension(std::env::consts::EXE_EXTENSION)
}

/// Tells whether `command` can be started and succeeds. Its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs one step of a chore and shows its output, between a heading and the wall time.
///
/// Errors: the command cannot be started or fails.
pub fn step(name: &str, command: &mut Command) -> Result<()> {
    heading(name, command);
    let start = Instant::now();
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    let seconds = start.elapsed().as_secs_f64();
    if status.success() {
        eprintln!("xtask: {name} took {seconds:.1} s");
        return Ok(());
    }
    let code = exit_code(status);
    Err(Failure { line: format!("{name} failed after {seconds:.1} s ({status}): {}", line(command)), code })
}

/// Runs the last step of a chore. Nothing is printed after the command's own output, and its exit code becomes that of xtask.
///
/// Errors: the command cannot be started.
pub fn last_step(name: &str, command: &mut Command) -> Result<ExitCode> {
    heading(name, command);
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    Ok(ExitCode::from(exit_code(status)))
}

fn heading(name: &str, command: &Command) {
    eprintln!("xtask: {name}: {}", line(command));
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot start {}: {error}", command.get_program().display()))
}

/// Returns the exit code of a process; 1 if a signal ended it.
fn exit_code(status: std::process::ExitStatus) -> u8 {
    if status.success() {
        return 0;
    }
    status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0).unwrap_or(1)
}

/// Formats a command as a person would type it: the program without its folder, then its arguments.
fn line(command: &Command) -> impl fmt::Display {
    let program = PathBuf::from(command.get_program());
    let program = program.file_name().unwrap_or_else(|| command.get_program()).to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_is_one_line_with_its_exit_code() {
        let failure = step("refusal", Command::new("sh").args(["-c", "exit 7"])).unwrap_err();
        assert_eq!(failure.code, 7);
        assert!(failure.line.starts_with("refusal failed after"), "{}", failure.line);
        assert!(failure.line.ends_with("sh -c exit 7"), "{}", failure.line);
        assert!(!failure.line.contains('\n'));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let failure = step("ghost", &mut Command::new("no-such-program-anywhere")).unwrap_err();
        assert!(failure.line.starts_with("cannot start no-such-program-anywhere: "), "{}", failure.line);
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("xtask/Cargo.toml").is_file());
    }
}
