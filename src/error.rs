//! The one error type of the library. Each variant carries its operands, and its message says what to do next.

use std::path::PathBuf;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one sentence for the person in front of the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, an option or a model that cannot be used as it is.
    #[error("{subject}: found {found}, expected {expected}; {remedy}")]
    Input {
        /// The file or option at fault, as the user knows it.
        subject: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
        /// What to do about it, in the imperative.
        remedy: String,
    },
    /// The operating system refused a file operation.
    #[error("{path}: cannot {action} ({source}); {remedy}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The verb: "read", "write", "create" …
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do about it, in the imperative.
        remedy: String,
    },
    /// A NaN or an infinity where a number must be. Numbers are never made up, so the run ends here.
    #[error("{place}: found a value that is NaN or infinite, expected finite numbers; {remedy}")]
    NotFinite {
        /// The tensor, layer or quantity.
        place: String,
        /// What to do about it, in the imperative.
        remedy: String,
    },
    /// Operands of an operation do not fit together: a bug of the caller, not of the user's input.
    #[error("{op}: operands do not fit: {detail}; this is a bug in the calling code, please report it")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The operands, with their shapes.
        detail: String,
    },
    /// The device has no memory left for a buffer.
    #[error(
        "{device}: out of memory while allocating {bytes} bytes for {what}; use fewer or shorter samples, or --device cpu"
    )]
    OutOfMemory {
        /// The adapter's name.
        device: String,
        /// Size of the refused allocation.
        bytes: u64,
        /// What it was for.
        what: String,
    },
    /// The GPU went away: driver reset, watchdog, unplugged.
    #[error("{device}: the GPU was lost ({reason}); run again, with --device cpu if it happens again")]
    DeviceLost {
        /// The adapter's name.
        device: String,
        /// What the driver said.
        reason: String,
    },
    /// The GPU or its driver refused an operation.
    #[error("{device}: the GPU refused an operation ({message}); try --device cpu, and please report this")]
    Gpu {
        /// The adapter's name.
        device: String,
        /// What wgpu said.
        message: String,
    },
    /// The user, or the program around the library, asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Bad input: the four parts of the sentence, each a phrase without a full stop.
    pub fn input(
        subject: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Input { subject: subject.into(), found: found.into(), expected: expected.into(), remedy: remedy.into() }
    }

    /// Operands that do not fit together.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }
}
