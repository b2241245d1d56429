//! What ends a run: what is wrong, what to do about it, and an exit code.

use std::fmt;

use crate::partition::Partition;

/// An error that ends the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    /// The month that it is about, where there are several.
    partition: Option<Partition>,
    what: String,
    advice: Vec<Advice>,
    /// What else is to be known, behind all that.
    more: Vec<String>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line, the environment, or what they point at is wrong;
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

/// What to do about an error, where that depends on what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Advice {
    /// The disk of the state directory is full.
    MakeRoom,
    /// More files or connections are open than the process may have.
    RaiseOpenFiles,
    /// What must be in memory at once does not fit.
    RaiseMemoryLimit,
    /// The same of a single row.
    MakeRoomForRow,
    /// The server, or a proxy before it, does not take even a single row.
    RaiseServerLimit,
    /// What is kept on disk cannot be used.
    Restart,
    /// The work is done in part, and can be continued.
    Resume {
        /// How far it is.
        so_far: Option<String>,
    },
    /// The same, where the command line continues a run by itself.
    RunAgain {
        /// How far it is.
        so_far: Option<String>,
    },
}

impl Error {
    /// The command line, the environment, or what they point at is wrong.
    pub(crate) fn configuration(what: impl Into<String>) -> Self {
        Self::new(Kind::Configuration, what)
    }

    /// The work could not be finished.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what)
    }

    /// The same, because of what happened while `doing` something.
    pub(crate) fn caused(doing: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::failed(format!("{doing}: {cause}"))
    }

    /// A clean stop because of a signal.
    pub(crate) fn interrupted(signal: u8) -> Self {
        Self::new(Kind::Interrupted { signal }, "interrupted")
    }

    /// The same before something was begun.
    pub(crate) fn interrupted_before(signal: u8, what: impl fmt::Display) -> Self {
        let what = format!("interrupted before {what} was begun");
        Self::new(Kind::Interrupted { signal }, what)
    }

    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            partition: None,
            what: what.into(),
            advice: Vec::new(),
            more: Vec::new(),
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub(crate) fn with(mut self, advice: impl Into<Option<Advice>>) -> Self {
        self.advice.extend(advice.into());
        self
    }

    /// The same error, with the partition that it is about.
    #[must_use]
    pub(crate) fn in_partition(self, partition: Partition) -> Self {
        Self {
            partition: Some(partition),
            ..self
        }
    }

    /// The same, told as part of something larger.
    #[must_use]
    pub(crate) fn during(self, doing: impl fmt::Display) -> Self {
        Self {
            what: format!("{doing}: {}", self.what),
            ..self
        }
    }

    /// The same, with something else that is to be known.
    #[must_use]
    pub(crate) fn and(mut self, more: String) -> Self {
        self.more.push(more);
        self
    }

    /// The same after something was done, which a wrong configuration cannot be found before.
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

    /// Whether it is known what to do about it.
    pub(crate) fn has_advice(&self) -> bool {
        !self.advice.is_empty()
    }

    /// Whose turn it is.
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
        f.write_str(&self.what)?;
        for advice in &self.advice {
            write!(f, "; {advice}")?;
        }
        for more in &self.more {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Advice::MakeRoom => {
                "the disk is full; make room, or name a larger one with --state-dir"
            }
            Advice::RaiseOpenFiles => {
                "raise the limit of open files, for example with `ulimit -n 1024`"
            }
            Advice::RaiseMemoryLimit => "raise --memory-limit",
            Advice::MakeRoomForRow => {
                "a single row is larger than that; raise --memory-limit or lower --concurrency"
            }
            Advice::RaiseServerLimit => {
                "even a single row is too large for the server, or for a proxy before it; raise its \
                 limit"
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
        .and("2 partitions were not begun".to_owned())
        .in_partition("202406".parse().unwrap());
        assert_eq!(
            error.to_string(),
            "partition 202406: the checkpoint cannot be written: No space left on device; the disk is \
             full; make room, or name a larger one with --state-dir; 3 of 9 segments done so far: \
             continue with --resume; 2 partitions were not begun"
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(Error::interrupted(15).exit_code(), 143);
    }
}
