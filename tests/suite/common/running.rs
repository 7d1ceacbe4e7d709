//! Runs of the command line that a test stops at a line which they print.
//!
//! A test reads a run's progress from its standard error, and so needs neither sleeps nor guesses: when it has read "block 3 of
//! 8: …", the run has kept three blocks.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_aquatint");

/// The program under test, to be given arguments. Signals end it, even where whoever started the tests has its children ignore
/// them, as a script has its jobs in the background ignore Ctrl-C.
pub fn interruptible() -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,XFSZ", BINARY]);
        command
    } else {
        Command::new(BINARY)
    }
}

/// The program under test, to be given arguments. The system kills it inside the write that takes a file beyond `bytes`, which are
/// rounded down to a multiple of 512.
#[cfg(unix)]
pub fn killed_beyond(bytes: u64) -> Command {
    let program = interruptible();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -c 0; ulimit -f {}; exec \"$@\"", bytes / 512), "sh"]);
    command.arg(program.get_program()).args(program.get_args());
    command
}

/// A run that has not ended, as far as the test knows.
pub struct Running {
    child: Child,
    lines: BufReader<ChildStderr>,
}

impl Running {
    /// Starts a run.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Self { child, lines }
    }

    /// Waits for the next line that starts with `prefix`. Panics if the run ends before.
    pub fn wait_for(&mut self, prefix: &str) {
        let mut line = String::new();
        while !line.starts_with(prefix) {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "it ended before it said '{prefix}'");
        }
    }

    /// Kills the run.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Presses Ctrl-C, or kills the run where there is no such thing. Returns how it ended, and what it said after that.
    pub fn interrupt(mut self) -> (ExitStatus, String) {
        if cfg!(unix) {
            assert!(Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap().success());
        } else {
            self.child.kill().unwrap();
        }
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}
