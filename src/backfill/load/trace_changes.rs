//! Reloads traces that changed since they were loaded, so that a trace unpublished or deleted
//! during the run is not written in its old form.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::block_in_place;

use super::versions::{self, TraceRows};
use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::backfill::error::WorkError;
use crate::backfill::guard::row_hash::microseconds;
use crate::backfill::work_attempts::WorkAttempts;
use crate::clickhouse::retry::Retries;
use crate::clickhouse::{Connection, Statement, TableInfo, now_in_microseconds};
use crate::error::Error;
use crate::inspect::statements::TRACE;
use crate::inspect::statements::trace_items;
use crate::mapping::{Mapping, SelectItem};
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::native::Block;
use crate::partition::Day;
use crate::shutdown::Shutdown;
use crate::state::checkpoint::Checkpoint;
use crate::trace_store::{About, Reach, RemoteWriter, TraceRecord, TraceStore, key};

/// How far before the last read to start reading, in microseconds: versions carry the time Langfuse
/// made them, but reach ClickHouse minutes later.
const OVERLAP: i64 = 3_600_000_000;

/// A trace's key and its newest version, with its day.
type Arrived<'a> = (Vec<u8>, (Day, TraceRecord<'a>));

/// Counts of changes during a run.
#[derive(Debug, Default)]
pub(crate) struct ChangeCounts {
    /// Traces reloaded.
    pub reloaded: AtomicU64,
    /// Reloaded traces whose event attributes changed after events had been written.
    pub after_writing: AtomicU64,
    /// Whether any events have been written.
    pub has_written: AtomicBool,
}

impl ChangeCounts {
    /// The counts of a resumed run.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let has_begun = !checkpoint.done.is_empty() || !checkpoint.begun.is_empty();
        Self {
            reloaded: checkpoint.traces_reloaded.into(),
            after_writing: checkpoint.traces_changed.into(),
            has_written: has_begun.into(),
        }
    }
}

/// Reloads changed traces. Owns everything, so that it can run beside the segments.
pub(crate) struct TraceChanges {
    /// The server.
    pub connection: Connection,
    /// The table `traces`.
    pub traces: TableInfo,
    /// The trace attributes that events take.
    pub mapping: Mapping,
    /// Memory limits for blocks.
    pub budget: Budget,
    /// Block buffers.
    pub pool: BufferPool,
    /// When to retry.
    pub retries: Retries,
    /// Signals a request to stop.
    pub shutdown: Shutdown,
    /// The store to update.
    pub store: Arc<TraceStore>,
    /// The days whose traces are loaded.
    pub days: RangeInclusive<Day>,
    /// Polling interval.
    pub every: Duration,
    /// How far the server's clock is ahead, in microseconds.
    pub clock_ahead: i64,
    /// Changes are read up to this time, in microseconds since 1970 on the server's clock.
    pub read_until: AtomicI64,
    /// What was found.
    pub counts: Arc<ChangeCounts>,
    /// If the store has no traces, since the server joins them: when the run began, in microseconds since
    /// 1970. Nothing is known of a trace before it changed, so each newer version counts as a change.
    pub unknown_since: Option<i64>,
}

impl TraceChanges {
    /// Polls until dropped or until a permanent error.
    pub(crate) async fn watch(&self) -> Error {
        loop {
            tokio::time::sleep(self.every).await;
            match self.reload().await {
                // On a signal the writers end by themselves, once their inserts are settled.
                Err(error) if error.signal().is_some() => std::future::pending().await,
                Err(error) => return error,
                Ok(()) => {}
            }
        }
    }

    /// Loads changes since the last read, with retries.
    ///
    /// # Errors
    /// [`Error`] if the retries are exhausted or on a signal.
    pub(crate) async fn reload(&self) -> Result<(), Error> {
        let now = now_in_microseconds() + self.clock_ahead;
        let doing = "loading changed traces";
        let failed = "cannot load the changed traces";
        let mut attempts =
            WorkAttempts::new(&self.retries, doing, failed).in_blocks_of(versions::BLOCK_ROWS);
        while let Err(error) = self.reload_once(attempts.block_rows()).await {
            attempts.failed(error).await?;
        }
        self.read_until.store(now, Ordering::Relaxed);
        Ok(())
    }

    async fn reload_once(&self, block_rows: usize) -> Result<(), WorkError> {
        let since = self.read_until.load(Ordering::Relaxed) - OVERLAP;
        let query = format!(
            "SELECT {} FROM (SELECT * FROM {} AS {TRACE} WHERE {} >= {since} ORDER BY \
             {TRACE}.project_id, {TRACE}.id, {TRACE}.event_ts, toDate({TRACE}.timestamp)) AS \
             {TRACE} ARRAY JOIN [1] AS one",
            SelectItem::list(&trace_items(&self.mapping)),
            self.traces.qualified_name(),
            microseconds("t.event_ts"),
        );
        let statement = Statement::new(query, block_rows)
            .in_bytes(self.budget.preferred_block_bytes)
            .of_a_table();
        // The segments use their own shares meanwhile.
        let most = self.budget.max_block_bytes / 2;
        let (connection, shutdown) = (&self.connection, &self.shutdown);
        catch_up(connection, &self.traces, shutdown).await?;
        let mut blocks = BlockStream::open(connection, &statement, most, &self.pool, shutdown)?;
        while let Some(block) = blocks.next().await? {
            block_in_place(|| self.take(&block))?;
        }
        Ok(())
    }

    /// Stores a block's versions that are newer than the stored ones.
    fn take(&self, block: &Block) -> Result<(), WorkError> {
        let mut latest: BTreeMap<Vec<u8>, (Day, TraceRecord<'_>)> = BTreeMap::new();
        let mut rows = TraceRows::new(block)?;
        for _ in 0..block.rows {
            let row = rows.next_row()?;
            let mut encoded = Vec::new();
            key::encode(&mut encoded, row.project_id, row.trace_id);
            // A trace's versions arrive in chronological order.
            latest.insert(encoded, (row.day, row.record));
        }
        let latest: Vec<Arrived<'_>> = latest.into_iter().collect();
        let mut writer = RemoteWriter::new(&self.store, About::Moved);
        let mut rest = latest.as_slice();
        let mut at_once = rest.len().max(1);
        while !rest.is_empty() {
            let (these, others) = rest.split_at(at_once.min(rest.len()));
            if self.keep_newer(these, &mut writer)? {
                rest = others;
            } else {
                // The stored records of this many exceed the memory limit.
                at_once = these.len() / 2;
            }
        }
        Ok(writer.finish()?)
    }

    /// Stores the versions that are newer than the stored ones. Returns false, having done nothing,
    /// if they are too many at once.
    fn keep_newer(
        &self,
        versions: &[Arrived<'_>],
        writer: &mut RemoteWriter<'_>,
    ) -> Result<bool, WorkError> {
        let asked: Vec<(Day, &[u8])> = versions
            .iter()
            .map(|(key, (day, _))| (*day, key.as_slice()))
            .collect();
        let max_bytes = match versions.len() {
            1 => usize::MAX,
            _ => self.budget.max_block_bytes / 2,
        };
        let known = self.store.look_up(&asked, Reach::AllDays, max_bytes)?;
        if known.is_too_large() {
            return Ok(false);
        }
        let mut encoded = Vec::new();
        for (index, (key, (day, record))) in versions.iter().enumerate() {
            let known_ts = known.event_ts(index)?;
            let is_newer = known_ts.map_or(self.days.contains(day), |ts| ts < record.event_ts);
            if !is_newer {
                continue;
            }
            record.encode(&mut encoded)?;
            writer.put(key, &encoded)?;
            self.counts.reloaded.fetch_add(1, Ordering::Relaxed);
            let before = known.record(index)?;
            let is_same = match &before {
                Some(before) => !record.is_deleted && has_same_attributes(before, record),
                None if known_ts.is_none() => {
                    let since = self.unknown_since;
                    since.is_none_or(|since| record.event_ts <= since)
                }
                // Events written without the trace have none of its attributes.
                None => record.is_deleted,
            };
            if !is_same && self.counts.has_written.load(Ordering::Relaxed) {
                self.counts.after_writing.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(true)
    }
}

/// Whether events would be the same with either record.
fn has_same_attributes(one: &TraceRecord<'_>, other: &TraceRecord<'_>) -> bool {
    let same_version = TraceRecord {
        event_ts: other.event_ts,
        day: other.day,
        ..one.clone()
    };
    same_version == *other
}
