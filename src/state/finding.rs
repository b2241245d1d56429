//! What a command said of a month: kept beside the run's state, for who looks at all of it later.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::directory::{LEAVE_FINDINGS, PartitionDir};
use super::report;
use crate::error::Error;

/// What a command said of a month.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// `verify` or `repair`.
    pub command: String,
    /// What was written up to then it has seen, in seconds since 1970.
    pub said_at: u64,
    /// What it printed.
    pub words: String,
    /// What it ended with, if not with success.
    pub error: Option<String>,
}

impl Finding {
    /// Said of what there was at that moment.
    pub(crate) fn new(
        command: &str,
        said_at: u64,
        words: String,
        outcome: &Result<(), Error>,
    ) -> Self {
        Self {
            command: command.to_owned(),
            said_at,
            words,
            error: outcome.as_ref().err().map(Error::to_string),
        }
    }

    /// Keeps it in the directory of the month, where a run has made one.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) where the file system does not let it.
    pub(crate) fn keep(&self, directory: &PartitionDir) -> Result<(), Error> {
        match directory.path.is_dir() {
            true => report::keep(self, &directory.finding(&self.command)),
            false => Ok(()),
        }
    }

    /// All that is kept of a month, the oldest first.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) where a file is not to be read, or not what was written.
    pub(crate) fn all(directory: &PartitionDir) -> Result<Vec<Self>, Error> {
        let mut findings = Vec::new();
        for command in LEAVE_FINDINGS {
            let path = directory.finding(command);
            let unusable = |error: &dyn std::fmt::Display| {
                Error::failed(format!(
                    "{} cannot be used: {error}; `events-backfill {command}` writes it anew",
                    path.display()
                ))
            };
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(unusable(&error)),
            };
            let finding: Self = serde_json::from_slice(&bytes).map_err(|error| unusable(&error))?;
            findings.push(finding);
        }
        findings.sort_by_key(|finding| finding.said_at);
        Ok(findings)
    }
}
