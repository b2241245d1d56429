//! What ends a run: what is wrong, what to do about it, and an exit code.

use std::borrow::Cow;
use std::fmt;

use crate::partition::Partition;

/// An error that ends the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    /// The month it concerns, where there are several.
    partition: Option<Partition>,
    what: String,
    advice: Vec<Advice>,
    /// Further sentences that follow the advice.
    more: Vec<String>,
    /// The setting that is most likely wrong or missing, by the name of its variable.
    setting: Option<&'static str>,
}

/// What kind of failure it is; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line, the environment, or something they point to is wrong;
    /// nothing was done. Exit code 2.
    Configuration,
    /// The work could not be finished. Exit code 1.
    Failed,
    /// Ended by a signal after a clean stop. Exit code 128 + signal.
    Interrupted {
        /// Number of the signal: 1 (SIGHUP), 2 (SIGINT) or 15 (SIGTERM).
        signal: u8,
    },
}

/// What to do about an error, chosen by its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Advice {
    /// The disk of the state directory is full.
    MakeRoom,
    /// The process has reached its limit of open files and connections.
    RaiseOpenFiles,
    /// The data that must be in memory at once does not fit.
    RaiseMemoryLimit,
    /// A single row does not fit into memory.
    MakeRoomForRow,
    /// Even a single row is too large for the server, or for a proxy in front of it.
    RaiseServerLimit,
    /// The saved state cannot be used.
    Restart,
    /// Part of the work is done; --resume continues it.
    Resume {
        /// How far it is.
        so_far: Option<String>,
    },
    /// Part of the work is done; the same command line (--resume-or-start) continues it.
    RunAgain {
        /// How far it is.
        so_far: Option<String>,
    },
}

impl Error {
    /// The command line, the environment, or something they point to is wrong.
    pub(crate) fn configuration(what: impl Into<String>) -> Self {
        Self::new(Kind::Configuration, what)
    }

    /// The work could not be finished.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what)
    }

    /// `doing` something failed because of `cause`.
    pub(crate) fn caused(doing: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::failed(format!("{doing}: {cause}"))
    }

    /// A clean stop because of a signal.
    pub(crate) fn interrupted(signal: u8) -> Self {
        Self::new(Kind::Interrupted { signal }, "interrupted")
    }

    /// Interrupted before `what` started.
    pub(crate) fn interrupted_before(signal: u8, what: impl fmt::Display) -> Self {
        let what = format!("interrupted before {what} started");
        Self::new(Kind::Interrupted { signal }, what)
    }

    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            partition: None,
            what: what.into(),
            advice: Vec::new(),
            more: Vec::new(),
            setting: None,
        }
    }

    /// Names the variable of the setting that is most likely wrong or missing.
    #[must_use]
    pub(crate) fn about(self, setting: impl Into<Option<&'static str>>) -> Self {
        Self {
            setting: setting.into(),
            ..self
        }
    }

    /// The variable of the setting that is most likely wrong or missing, if one is.
    pub(crate) fn setting(&self) -> Option<&'static str> {
        self.setting
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn with(mut self, advice: impl Into<Option<Advice>>) -> Self {
        self.advice.extend(advice.into());
        self
    }

    /// Names the partition it concerns.
    #[must_use]
    pub(crate) fn in_partition(self, partition: Partition) -> Self {
        Self {
            partition: Some(partition),
            ..self
        }
    }

    /// Puts the larger task that failed before the sentence.
    #[must_use]
    pub(crate) fn during(self, doing: impl fmt::Display) -> Self {
        Self {
            what: format!("{doing}: {}", self.what),
            ..self
        }
    }

    /// Appends another sentence.
    #[must_use]
    pub(crate) fn and(mut self, more: String) -> Self {
        self.more.push(more);
        self
    }

    /// Turns a configuration error into a failure: exit code 2 promises that nothing was done.
    #[must_use]
    pub(crate) fn after_work(self) -> Self {
        Self {
            kind: match self.kind {
                Kind::Configuration => Kind::Failed,
                kind => kind,
            },
            ..self
        }
    }

    /// Whether it says what to do.
    pub(crate) fn has_advice(&self) -> bool {
        !self.advice.is_empty()
    }

    /// What kind of failure it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The signal that ended the run, if one did.
    pub(crate) fn signal(&self) -> Option<u8> {
        match self.kind {
            Kind::Interrupted { signal } => Some(signal),
            Kind::Configuration | Kind::Failed => None,
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Configuration => 2,
            Kind::Failed => 1,
            Kind::Interrupted { signal } => 128 + signal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(partition) = self.partition {
            write!(f, "partition {partition}: ")?;
        }
        f.write_str(&without_os_errors(&self.what))?;
        for advice in &self.advice {
            write!(f, "; {advice}")?;
        }
        for more in &self.more {
            write!(f, "; {}", without_os_errors(more))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Removes the numbers of operating system errors from a text for people: the words before
/// ` (os error 111)` say the same.
pub(crate) fn without_os_errors(text: &str) -> Cow<'_, str> {
    const BEFORE: &str = " (os error ";
    let mut pieces = text.split(BEFORE);
    let Some(mut plain) = pieces.next().map(str::to_owned) else {
        return text.into();
    };
    if plain.len() == text.len() {
        return text.into();
    }
    for piece in pieces {
        match piece.trim_start_matches(|c: char| c.is_ascii_digit()) {
            rest if rest.len() < piece.len() && rest.starts_with(')') => plain.push_str(&rest[1..]),
            _ => plain.extend([BEFORE, piece]),
        }
    }
    plain.into()
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Advice::MakeRoom => {
                "that disk is full: free some space on it"
            }
            Advice::RaiseOpenFiles => {
                "raise the limit on open files, for example with `ulimit -n 1024`"
            }
            Advice::RaiseMemoryLimit => "raise --memory-limit",
            Advice::MakeRoomForRow => {
                "a single row is larger than that; raise --memory-limit or lower --concurrency"
            }
            Advice::RaiseServerLimit => {
                "even a single row is too large for the server, or for a proxy in front of it; raise \
                 its limit"
            }
            Advice::Restart => "--restart discards it and starts over",
            Advice::Resume { so_far: None } => "continue with --resume",
            Advice::Resume {
                so_far: Some(so_far),
            } => return write!(f, "{so_far} so far: continue with --resume"),
            Advice::RunAgain { so_far: None } => "the same command line continues it",
            Advice::RunAgain {
                so_far: Some(so_far),
            } => return write!(f, "{so_far} so far: the same command line continues it"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_first_and_then_what_to_do() {
        let error = Error::caused(
            "the checkpoint cannot be written",
            "No space left on device",
        )
        .with(Advice::MakeRoom)
        .with(Advice::Resume {
            so_far: Some("3 of 9 segments done".to_owned()),
        })
        .and("2 partitions were not started".to_owned())
        .in_partition("202406".parse().unwrap());
        assert_eq!(
            error.to_string(),
            "partition 202406: the checkpoint cannot be written: No space left on device; that disk is \
             full: free some space on it; 3 of 9 segments done so far: continue with --resume; \
             2 partitions were not started"
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(Error::interrupted(15).exit_code(), 143);
    }

    #[test]
    fn an_error_of_the_operating_system_is_told_in_words_without_its_number() {
        let refused = std::io::Error::from_raw_os_error(111);
        let error = Error::caused("the connection to ClickHouse failed", refused)
            .and("1 more (No such file or directory (os error 2))".to_owned());
        assert_eq!(
            error.to_string(),
            "the connection to ClickHouse failed: Connection refused; 1 more (No such file or \
             directory)"
        );
        for other in [
            "(os error 5",
            " (os error )",
            " (os error x) y",
            "no error",
            "",
        ] {
            assert_eq!(without_os_errors(other), other);
        }
    }
}
