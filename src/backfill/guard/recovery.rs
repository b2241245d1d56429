//! Before resending rows that may already exist: makes sure that nothing of the previous attempt is
//! still running, and stores what it wrote.

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

/// Finds out what an attempt left in the target. All segments share one.
pub(crate) struct Recovery {
    /// Reads the target.
    pub target: Arc<TargetMonth>,
    /// Where the result is stored.
    pub store: Arc<TraceStore>,
    /// Which of a backfill's rows count as existing.
    pub own_rows: OwnRows,
    /// When to retry.
    pub retries: Retries,
}

impl Recovery {
    /// Call after a failed attempt at a segment. Inserts whose query ids start with `in_doubt` may
    /// still be running.
    ///
    /// # Errors
    /// [`Error`] if the inserts do not end, the target cannot be read, or on a signal.
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

    /// Call after a process died while writing these segments. `prefix` starts all of the run's
    /// query ids.
    ///
    /// # Errors
    /// [`Error`] if the inserts do not end, the target cannot be read, or on a signal.
    pub(crate) async fn after_process(
        &self,
        segments: impl Iterator<Item = &Segment>,
        prefix: &str,
    ) -> Result<(), Error> {
        self.end_inserts(prefix).await?;
        let days = self.days();
        // Segments of several types on the same days share an extent.
        let extents: BTreeSet<Extent> = segments
            .map(|segment| Extent::of_segment(segment, &days))
            .collect();
        for extent in &extents {
            self.load(extent).await?;
        }
        Ok(())
    }

    /// Waits until inserts whose query ids start with `prefix` have ended.
    ///
    /// # Errors
    /// [`Error`] if they do not end, or on a signal.
    pub(crate) async fn end_inserts(&self, prefix: &str) -> Result<(), Error> {
        let mut attempts = self.attempts("waiting for earlier inserts to end");
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
                    "{address} may still be writing what it received, so nothing is sent again \
                     until it answers; if it is gone for good, remove its address from \
                     CLICKHOUSE_URL, and verify the month at the end"
                )),
                _ => error,
            })?;
        }
    }

    async fn load(&self, extent: &Extent) -> Result<(), Error> {
        self.load_into(Against::RowsSince, extent).await
    }

    /// Stores the keys of the rows in an extent of the target.
    ///
    /// # Errors
    /// [`Error`] if the target cannot be read, or on a signal.
    pub(crate) async fn load_into(&self, against: Against, extent: &Extent) -> Result<(), Error> {
        let mut attempts = self.attempts("reading existing rows of the target");
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

    /// Retry handling for a step of the recovery or its callers.
    pub(crate) fn attempts(&self, doing: &str) -> WorkAttempts<'_> {
        WorkAttempts::new(&self.retries, doing, format!("{doing} failed"))
    }

    fn days(&self) -> RangeInclusive<Day> {
        self.target.share.days()
    }
}
