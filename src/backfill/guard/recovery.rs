//! What must be known before rows are sent again that may be there: nothing of the attempt before
//! is under way any more, and what it has written is in the store.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::leftover_inserts::{self, Unsettled};
use super::target::{Extent, TargetMonth};
use crate::backfill::work_attempts::WorkAttempts;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::segments::Segment;
use crate::partition::Day;
use crate::state::counts::OwnRows;
use crate::trace_store::{Against, TraceStore};

/// Finds out what an attempt has left in the target. Shared by all segments.
pub(crate) struct Recovery {
    /// Reads what the target has.
    pub target: Arc<TargetMonth>,
    /// Where that is kept.
    pub store: Arc<TraceStore>,
    /// Which of a backfill's rows count as there.
    pub own_rows: OwnRows,
    /// When to try again.
    pub retries: Retries,
}

impl Recovery {
    /// After an attempt at a segment. Inserts of it may still be under way whose query ids begin with
    /// `in_doubt`.
    ///
    /// # Errors
    /// [`Error`] where it cannot be found out.
    pub(crate) async fn after_attempt(
        &self,
        segment: &Segment,
        in_doubt: Option<&str>,
    ) -> Result<(), Error> {
        if let Some(prefix) = in_doubt {
            self.end_inserts(prefix).await?;
        }
        self.load(&Extent::of_segment(segment, &self.days())).await
    }

    /// After a process has ended that had begun these segments; all queries of the run have ids
    /// that begin with `prefix`.
    ///
    /// # Errors
    /// [`Error`] where it cannot be found out.
    pub(crate) async fn after_process(
        &self,
        segments: impl Iterator<Item = &Segment>,
        prefix: &str,
    ) -> Result<(), Error> {
        self.end_inserts(prefix).await?;
        let days = self.days();
        // Segments of several types on the same days lie in one extent.
        let extents: BTreeSet<Extent> = segments
            .map(|segment| Extent::of_segment(segment, &days))
            .collect();
        for extent in &extents {
            self.load(extent).await?;
        }
        Ok(())
    }

    /// Waits until no insert of these is under way.
    ///
    /// # Errors
    /// [`Error`] where they do not end.
    pub(crate) async fn end_inserts(&self, prefix: &str) -> Result<(), Error> {
        let mut attempts = self.attempts("waiting for the inserts of before to end");
        loop {
            let ended = tokio::select! {
                ended = leftover_inserts::end(&self.target.connection, prefix) => ended,
                signal = self.target.shutdown.requested() => return Err(Error::interrupted(signal)),
            };
            let Err(Unsettled { error, address }) = ended else {
                return Ok(());
            };
            let failed = attempts.failed(error.into()).await;
            failed.map_err(|error| match address {
                Some(address) if error.signal().is_none() => error.and(format!(
                    "{address} may still be writing what was sent to it, so nothing is sent again until it \
                     answers: if it never will, leave its address out of CLICKHOUSE_URL, and verify the month \
                     in the end"
                )),
                _ => error,
            })?;
        }
    }

    async fn load(&self, extent: &Extent) -> Result<(), Error> {
        self.load_into(Against::RowsSince, extent).await
    }

    /// Reads which rows an extent of the target has.
    ///
    /// # Errors
    /// [`Error`] where they cannot be read.
    pub(crate) async fn load_into(&self, against: Against, extent: &Extent) -> Result<(), Error> {
        let mut attempts = self.attempts("reading which rows the target has");
        loop {
            let load = self
                .target
                .load(extent, self.own_rows, against, &self.store);
            let Err(error) = load.await else {
                return Ok(());
            };
            attempts.failed(error).await?;
        }
    }

    /// The attempts at what the recovery does, or needs.
    pub(crate) fn attempts(&self, doing: &str) -> WorkAttempts<'_> {
        WorkAttempts::new(&self.retries, doing, format!("{doing} failed"))
    }

    fn days(&self) -> RangeInclusive<Day> {
        self.target.share.days()
    }
}
