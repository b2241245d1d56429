//! Retries work: after a pause for temporary errors, and at once with smaller blocks if one was too
//! large.

use super::error::WorkError;
use crate::clickhouse::retry::{Attempts, Retries};
use crate::error::Error;

/// Retry handling for one piece of work.
pub(crate) struct WorkAttempts<'a> {
    doing: String,
    failed: String,
    block_rows: usize,
    attempts: Attempts<'a>,
}

impl<'a> WorkAttempts<'a> {
    /// `doing` names the work while it is retried, `failed` once it is given up.
    pub(crate) fn new(
        retries: &'a Retries,
        doing: impl Into<String>,
        failed: impl Into<String>,
    ) -> Self {
        Self {
            doing: doing.into(),
            failed: failed.into(),
            block_rows: usize::MAX,
            attempts: retries.attempts(),
        }
    }

    /// Starts with blocks of at most `block_rows`.
    pub(crate) fn in_blocks_of(self, block_rows: usize) -> Self {
        Self { block_rows, ..self }
    }

    /// Maximum rows per block in the next attempt.
    pub(crate) fn block_rows(&self) -> usize {
        self.block_rows
    }

    /// Call after a failed attempt; returns when to try again.
    ///
    /// # Errors
    /// [`Error`] if retrying is pointless or exhausted, or on a signal.
    pub(crate) async fn failed(&mut self, error: WorkError) -> Result<(), Error> {
        self.unless_interrupted()?;
        if let Some(fewer) = error.smaller_blocks(self.block_rows) {
            self.block_rows = fewer;
            return Ok(());
        }
        let what = format!("{}: {error}", self.doing);
        let again = self.attempts.again(error.hope(), &error.kind(), what).await;
        self.unless_interrupted()?;
        match again {
            true => Ok(()),
            false => {
                let failed = format!("{}{}", self.failed, self.attempts.in_words());
                Err(Error::caused(failed, &error).with(error.advice()))
            }
        }
    }

    fn unless_interrupted(&self) -> Result<(), Error> {
        let signal = self.attempts.signal();
        signal.map_or(Ok(()), |signal| Err(Error::interrupted(signal)))
    }
}
