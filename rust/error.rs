//! The one error type of the core. Every message says what was expected and what was found.

use std::path::PathBuf;

/// What every fallible function of the core returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that a caller hands through the engine unchanged (a Python exception raised in a hook).
pub type Foreign = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Everything that can go wrong in the core. The Python border turns each variant into the exception class that
/// [`Error::class`] names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint is malformed, incomplete, or says something that cannot be true.
    #[error("checkpoint {name}: {what}")]
    Checkpoint {
        /// The file or tensor.
        name: String,
        /// What was expected and what was found.
        what: String,
    },
    /// The checkpoint's architecture is not one that the engine builds.
    #[error("unsupported model: {what}")]
    Unsupported {
        /// What was found and what is supported.
        what: String,
    },
    /// A site's name is unknown, or the site cannot do what was asked of it.
    #[error("site {name:?}: {what}")]
    Site {
        /// The name as given.
        name: String,
        /// Why it cannot be, with the nearest valid names.
        what: String,
    },
    /// Token ids outside the vocabulary, or no tokens where some are needed.
    #[error("tokens: {0}")]
    Tokens(String),
    /// A sequence is longer than the model's context.
    #[error("sequence of {found} tokens is longer than the model's context of {limit}")]
    ContextLength {
        /// Length of the sequence.
        found: usize,
        /// `n_ctx` of the model.
        limit: usize,
    },
    /// The tokenizer is missing, malformed, or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A corpus or a survey file is unusable.
    #[error("survey: {0}")]
    Survey(String),
    /// A search cannot start or go on.
    #[error("search: {0}")]
    Search(String),
    /// An argument is out of its domain.
    #[error("{name}: expected {expected}, found {found}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// The values it may take.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A device cannot be used here, with the reason.
    #[error("device {device}: {reason}")]
    Device {
        /// The device asked for.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The caller asked the work to stop.
    #[error("interrupted")]
    Interrupted,
    /// An error raised by the caller's own code inside the engine, handed back unchanged.
    #[error("{0}")]
    Foreign(Foreign),
    /// A broken invariant of the engine itself: a bug, reported instead of a panic.
    #[error("internal error (please report it): {0}")]
    Internal(String),
}

impl Error {
    /// Name of the Python exception class for this error.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Io { .. } => "FileError",
            Self::Checkpoint { .. } => "CheckpointError",
            Self::Unsupported { .. } => "UnsupportedModelError",
            Self::Site { .. } => "SiteError",
            Self::Tokens(_) => "TokenError",
            Self::ContextLength { .. } => "ContextLengthError",
            Self::Tokenizer(_) => "TokenizerError",
            Self::Survey(_) => "SurveyError",
            Self::Search(_) => "SearchError",
            Self::Argument { .. } => "ArgumentError",
            Self::Device { .. } => "DeviceError",
            Self::Interrupted => "KeyboardInterrupt",
            Self::Foreign(_) | Self::Internal(_) => "InternalError",
        }
    }

    /// An [`Error::Argument`] from anything printable.
    pub fn argument(name: &'static str, expected: impl Into<String>, found: impl std::fmt::Display) -> Self {
        Self::Argument { name, expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::Io`] about a path.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Checkpoint`] about a named file or tensor.
    pub fn checkpoint(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Checkpoint { name: name.into(), what: what.into() }
    }
}
