//! The error type of the library. Each variant carries its operands, and its message is one sentence that ends with
//! what to do next.
//!
//! A message refers to an option of the library as a [`Setting`], because front ends have their own names for it.
//! `Display` uses the names of the library. A front end passes its own table of [`Names`] to [`Error::sentence`].

mod phrase;
mod setting;

use std::fmt;
use std::path::PathBuf;

pub use phrase::Phrase;
pub(crate) use phrase::phrase;
pub use setting::{Advice, LibraryNames, Names, Setting};

/// The result type of the fallible functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. `Display` makes one sentence of it for the user.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file, an option or a model that cannot be used as it is.
    Input {
        /// The file or option at fault, under the name that the user knows.
        subject: Phrase,
        /// What was found.
        found: Phrase,
        /// What was expected.
        expected: Phrase,
        /// How to fix it, in the imperative.
        remedy: Phrase,
    },
    /// The operating system refused a file operation.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operation, as a verb: "read", "write", "create" …
        action: &'static str,
        /// The error of the operating system.
        source: std::io::Error,
        /// How to fix it, in the imperative.
        remedy: Phrase,
    },
    /// A value is NaN or infinite where a finite number is required. The run ends here, because no value is ever made
    /// up in its place.
    NotFinite {
        /// The tensor, layer or quantity with that value.
        place: String,
        /// How to fix it, in the imperative.
        remedy: Phrase,
    },
    /// The operands of an operation do not fit together. This is a bug in the calling code, not a fault in the user's
    /// input.
    Shape {
        /// Name of the operation.
        op: &'static str,
        /// The operands with their shapes.
        detail: String,
    },
    /// The device has no memory left for a buffer.
    OutOfMemory {
        /// Name of the adapter.
        device: String,
        /// Size of the refused allocation in bytes.
        bytes: u64,
        /// Purpose of the allocation.
        what: String,
    },
    /// The GPU was lost, for example by a driver reset, a watchdog, or because it was unplugged.
    DeviceLost {
        /// Name of the adapter.
        device: String,
        /// The reason that the driver gave.
        reason: String,
    },
    /// The GPU or its driver refused an operation.
    Gpu {
        /// Name of the adapter.
        device: String,
        /// The message of wgpu.
        message: String,
    },
    /// The user, or the program that uses the library, cancelled the run.
    Cancelled,
}

impl Error {
    /// An [`Error::Input`] from its four parts, each a phrase without a full stop.
    pub fn input(
        subject: impl Into<Phrase>,
        found: impl Into<Phrase>,
        expected: impl Into<Phrase>,
        remedy: impl Into<Phrase>,
    ) -> Self {
        Self::Input { subject: subject.into(), found: found.into(), expected: expected.into(), remedy: remedy.into() }
    }

    /// An [`Error::Shape`]: operands that do not fit together.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }

    /// The message as one sentence. Settings have the names of a front end.
    pub fn sentence(&self, names: &dyn Names) -> String {
        self.phrase().with_names(names)
    }

    /// The message as a phrase in which settings are still values. Code that does not know the front end can pass it
    /// on.
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
