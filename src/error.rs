//! What ends a run, as one sentence and an exit code.

use std::fmt;

/// An error that ends the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The command line, the environment, or what they point at is wrong;
    /// nothing was done. Exit code 2.
    Configuration(String),
    /// The work could not be finished. Exit code 1.
    Failed(String),
    /// Ended by a signal after a clean stop. Exit code 128 + signal.
    Interrupted {
        /// Number of the signal: 1 (SIGHUP), 2 (SIGINT) or 15 (SIGTERM).
        signal: u8,
        /// What to do next.
        message: String,
    },
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Configuration(_) => 2,
            Error::Failed(_) => 1,
            Error::Interrupted { signal, .. } => 128 + signal,
        }
    }

    /// A clean stop because of a signal.
    pub fn interrupted(signal: u8) -> Self {
        Error::Interrupted {
            signal,
            message: "interrupted".to_owned(),
        }
    }

    /// The same error, with the partition that it is about.
    pub fn in_partition(self, partition: impl fmt::Display) -> Self {
        let told = |message: String| format!("partition {partition}: {message}");
        match self {
            Error::Configuration(message) => Error::Configuration(told(message)),
            Error::Failed(message) => Error::Failed(told(message)),
            Error::Interrupted { signal, message } => Error::Interrupted {
                signal,
                message: told(message),
            },
        }
    }

    /// Wraps an error that happened while `doing` something.
    pub fn failed(doing: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Error::Failed(format!("{doing}: {cause}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Configuration(message)
            | Error::Failed(message)
            | Error::Interrupted { message, .. } => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}
