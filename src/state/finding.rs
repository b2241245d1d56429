//! The outcome of `verify` or `repair` for a month, kept beside the run's state for `report`.

use std::fmt::Display as Words;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, RunIdentity};
use super::directory::{LEAVE_FINDINGS, PartitionDir};
use super::report;
use crate::cli::options::Options;
use crate::error::Error;
use crate::progress::Display;

/// The outcome of a command for a month.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// `verify` or `repair`.
    pub command: String,
    /// It has seen everything written before this time, in milliseconds since 1970 (commands often follow each
    /// other within a second).
    pub said_at: u64,
    /// It has compared every change before this time, in seconds since 1970; later changes are left to
    /// Langfuse.
    #[serde(default)]
    pub compared_until: u64,
    /// Its output.
    pub words: String,
    /// Its error, if it failed.
    pub error: Option<String>,
}

impl Finding {
    /// The outcome of `command` for the state at `said_at`.
    pub(crate) fn new(
        command: &str,
        said_at: u64,
        words: &impl Words,
        outcome: &Result<(), Error>,
    ) -> Self {
        Self {
            command: command.to_owned(),
            said_at,
            words: words.to_string(),
            error: outcome.as_ref().err().map(Error::to_string),
            ..Self::default()
        }
    }

    /// Saves it beside every run of the month that wrote the same events: the run of the whole month, or
    /// those of its shards. Tells the user if a run wrote something else.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the file cannot be written.
    pub(crate) fn keep(
        &self,
        options: &Options,
        identity: &RunIdentity,
        display: &Display,
    ) -> Result<(), Error> {
        PartitionDir::of_partition(&options.state_dir, options.partition)
            .iter()
            .try_for_each(|directory| self.keep_in(directory, identity, display))
    }

    fn keep_in(
        &self,
        directory: &PartitionDir,
        identity: &RunIdentity,
        display: &Display,
    ) -> Result<(), Error> {
        let place = directory.path.display();
        let why_not = match Checkpoint::read(&directory.checkpoint()) {
            Ok(None) => return Ok(()),
            Ok(Some(checkpoint)) => {
                checkpoint
                    .identity
                    .difference_in_events(identity)
                    .map(|difference| {
                        format!("the run in {place} had different settings: {difference}")
                    })
            }
            Err(error) => Some(format!("the checkpoint in {place} cannot be used: {error}")),
        };
        match why_not {
            None => report::keep(self, &directory.finding(&self.command)),
            Some(why_not) => {
                display.note_once(format!(
                    "the result of this {} is not kept for `report`: {why_not}",
                    self.command
                ));
                Ok(())
            }
        }
    }

    /// The same time in seconds since 1970.
    pub(crate) fn second(&self) -> u64 {
        self.said_at / 1_000
    }

    /// The saved outcomes of a month, oldest first, and a sentence for each file that cannot be used.
    pub(crate) fn all(directory: &PartitionDir) -> (Vec<Self>, Vec<String>) {
        let (mut findings, mut unusable) = (Vec::new(), Vec::new());
        for command in LEAVE_FINDINGS {
            let path = directory.finding(command);
            let read = match std::fs::read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => Err(error.to_string()),
                Ok(bytes) => serde_json::from_slice::<Self>(&bytes).map_err(|e| e.to_string()),
            };
            match read {
                Ok(finding) => findings.push(finding),
                Err(error) => unusable.push(format!(
                    "{} cannot be used ({error}): `events-backfill {command} --partition {}` writes a \
                     new one",
                    path.display(),
                    directory.share.partition
                )),
            }
        }
        findings.sort_by_key(|finding| finding.said_at);
        (findings, unusable)
    }
}
