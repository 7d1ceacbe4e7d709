//! The one error type of the library. Each variant carries its operands, and its message says what to do next.
//!
//! A message names an option as a [`Setting`]. `Display` calls it what the library calls it; a front end passes its own table of
//! [`Names`] to [`Error::sentence`].

mod phrase;
mod setting;

use std::fmt;
use std::path::PathBuf;

pub use phrase::Phrase;
pub(crate) use phrase::phrase;
pub use setting::{Advice, LibraryNames, Names, Setting};

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one sentence for the person in front of the program.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file, an option or a model that cannot be used as it is.
    Input {
        /// The file or option at fault, as the user knows it.
        subject: Phrase,
        /// What is there.
        found: Phrase,
        /// What should be there.
        expected: Phrase,
        /// What to do about it, in the imperative.
        remedy: Phrase,
    },
    /// The operating system refused a file operation.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The verb: "read", "write", "create" …
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do about it, in the imperative.
        remedy: Phrase,
    },
    /// A NaN or an infinity where a number must be. Numbers are never made up, so the run ends here.
    NotFinite {
        /// The tensor, layer or quantity.
        place: String,
        /// What to do about it, in the imperative.
        remedy: Phrase,
    },
    /// Operands of an operation do not fit together: a bug of the caller, not of the user's input.
    Shape {
        /// The operation.
        op: &'static str,
        /// The operands, with their shapes.
        detail: String,
    },
    /// The device has no memory left for a buffer.
    OutOfMemory {
        /// The adapter's name.
        device: String,
        /// Size of the refused allocation.
        bytes: u64,
        /// What it was for.
        what: String,
    },
    /// The GPU went away: driver reset, watchdog, unplugged.
    DeviceLost {
        /// The adapter's name.
        device: String,
        /// What the driver said.
        reason: String,
    },
    /// The GPU or its driver refused an operation.
    Gpu {
        /// The adapter's name.
        device: String,
        /// What wgpu said.
        message: String,
    },
    /// The user, or the program around the library, asked to stop.
    Cancelled,
}

impl Error {
    /// Bad input: the four parts of the sentence, each a phrase without a full stop.
    pub fn input(
        subject: impl Into<Phrase>,
        found: impl Into<Phrase>,
        expected: impl Into<Phrase>,
        remedy: impl Into<Phrase>,
    ) -> Self {
        Self::Input { subject: subject.into(), found: found.into(), expected: expected.into(), remedy: remedy.into() }
    }

    /// Operands that do not fit together.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }

    /// The sentence with the names of a front end.
    pub fn sentence(&self, names: &dyn Names) -> String {
        self.phrase().with_names(names)
    }

    /// The sentence, for whoever passes it on and does not know the front end.
    pub fn phrase(&self) -> Phrase {
        match self {
            Self::Input { subject, found, expected, remedy } => {
                phrase![subject, ": found ", found, ", expected ", expected, "; ", remedy]
            }
            Self::Io { path, action, source, remedy } => {
                phrase![format!("{}: cannot {action} ({source}); ", path.display()), remedy]
            }
            Self::NotFinite { place, remedy } => {
                let problem = "found a value that is NaN or infinite, expected finite numbers";
                phrase![format!("{place}: {problem}; "), remedy]
            }
            Self::Shape { op, detail } => {
                let remedy = "this is a bug in the calling code, please report it";
                format!("{op}: operands do not fit: {detail}; {remedy}").into()
            }
            Self::OutOfMemory { device, bytes, what } => {
                let problem = format!("{device}: out of memory while allocating {bytes} bytes for {what}; ");
                phrase![problem, Advice::SmallerRun]
            }
            Self::DeviceLost { device, reason } => {
                phrase![format!("{device}: the GPU was lost ({reason}); "), Advice::RunAgain]
            }
            Self::Gpu { device, message } => {
                phrase![format!("{device}: the GPU refused an operation ({message}); "), Advice::OtherDevice]
            }
            Self::Cancelled => "cancelled".into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.phrase().fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
