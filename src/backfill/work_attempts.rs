//! Work that is tried again: after a pause where what stopped it may pass, and at once in smaller blocks
//! where one was too large.

use super::error::WorkError;
use crate::clickhouse::retry::{Attempts, Retries};
use crate::error::Error;

/// The attempts at one piece of work.
pub(crate) struct WorkAttempts<'a> {
    doing: String,
    failed: String,
    block_rows: usize,
    attempts: Attempts<'a>,
}

impl<'a> WorkAttempts<'a> {
    /// The attempts at what is called `doing` while it goes on, and `failed` once it is given up.
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

    /// The same in blocks of at most so many rows, to begin with.
    pub(crate) fn in_blocks_of(self, block_rows: usize) -> Self {
        Self { block_rows, ..self }
    }

    /// Most rows of a block in the next attempt.
    pub(crate) fn block_rows(&self) -> usize {
        self.block_rows
    }

    /// After an attempt that did not come off: returns when there is to be another one.
    ///
    /// # Errors
    /// [`Error`] where there is no use in another one, or the run is asked to end.
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
