//! The engine that has the server itself make the events: one `INSERT … SELECT … LEFT ANY JOIN` for
//! each segment, bounded by the segment's rows, so that inputs and outputs never leave the server.
//!
//! Before it, the keys of the segment's rows are read, a few dozen bytes each, and judged by the same
//! [`Guard`] as in the embedded engine: which rows are not to be written. What the join cannot do goes
//! through the pipeline of the embedded engine, row by row as always: rows whose trace is remote or has
//! versions on several days, spans of experiments, and rows without a trace id. The statement names the
//! traces it takes and the rows it leaves by their hashes, so that both together write each row once.

mod in_experiments;
mod key_file;
mod key_list;
mod key_scan;
mod keys;
mod row_check;
mod slice;
mod sorted_rows;
mod statements;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::block_in_place;
use tokio::time::Instant;

pub(crate) use self::key_file::KeyFile;
use self::key_list::KeyList;
pub(crate) use self::key_scan::KeyScan;
pub(crate) use self::keys::TraceName;
use self::row_check::RowCheck;
use self::slice::{KeptKeys, ReadSlice, Sorter};
use self::sorted_rows::SortedRows;
use self::statements::{Slice, Statements};
use super::error::WorkError;
use super::guard::Guard;
use super::guard::leftover_inserts;
use super::guard::target::days_of;
use super::pipeline::send::{Destination, LAST_INSERT};
use crate::clickhouse::{Connection, InsertSelect, RequestError, ServerInfo, TABLE_TIMEOUT};
use crate::inspect::Inspected;
use crate::inspect::segments::{Segment, SourcePartition};
use crate::inspect::statements::OF_FINAL;
use crate::mapping::Source;
use crate::memory::Budget;
use crate::partition::{Day, ShareOfMonth};
use crate::state::counts::{LeftOut, SegmentCounts};
use crate::trace_store::TraceStore;

/// Rows per statement where their number per second is limited: this many seconds' worth.
const SECONDS_PER_SLICE: u64 = 10;
/// Most slices of a segment. With so few rows each, memory is not what the server lacks.
const MOST_SLICES: u32 = 256;
/// Bytes for the key of each row of the embedded pipeline, and for its text in the statement.
const BYTES_PER_KEY: usize = 150;
/// After so many statements that succeeded, one gets twice as many rows again.
const PATIENCE: u32 = 16;
/// Most threads that write parts in one statement.
const MOST_INSERT_THREADS: usize = 16;
/// Rows per block that the server makes.
const BLOCK_ROWS: usize = 8_192;

/// Writes segments by statements. All segments share one.
pub(crate) struct Pushdown {
    sorter: Sorter,
    share: ShareOfMonth,
    destination: Arc<Destination>,
    /// Least number of slices, raised when the server lacked memory.
    slices: AtomicU32,
    /// Keys of segments that were read ahead, with the number of slices.
    read_ahead: Mutex<HashMap<u32, (u32, Vec<ReadSlice>)>>,
    rows_per_slice: u64,
    /// Memory for keys that are read ahead, in bytes.
    ahead_bytes: usize,
    /// Most rows of a segment for the embedded pipeline.
    most_apart: usize,
    /// Statements that succeeded since the slices were changed.
    succeeded: AtomicU32,
    /// Milliseconds that the last statement took.
    last_took: AtomicU64,
    row_check: RowCheck,
    /// Memory for one statement, in bytes.
    statement_bytes: Option<u64>,
    insert_threads: usize,
}

/// What a segment's statements did.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    /// What became events, and what was left out.
    pub counts: SegmentCounts,
    /// What is left for the embedded pipeline, if anything is.
    pub rest: Option<Rest>,
}

/// Rows of a segment, as conditions.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    /// Holds for all of them, and reads only the span id.
    pub prewhere: String,
    /// Holds for exactly them, and for other rows of their traces that were left out.
    pub condition: String,
    /// How many there are.
    pub rows: u64,
}

/// How far the statements got.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether rows may be in the target.
    pub has_sent: bool,
    /// Whether a server may still be writing.
    pub is_in_doubt: bool,
    /// Rows that the server acknowledged.
    pub written: u64,
}

impl Pushdown {
    /// Prepares the statements of a source.
    ///
    /// # Errors
    /// A sentence for the operator if the target's columns do not allow it.
    pub(crate) fn new(
        inspected: &Inspected,
        source: Source,
        store: Arc<TraceStore>,
        until: Option<i64>,
        destination: Arc<Destination>,
        budget: Budget,
        concurrency: usize,
    ) -> Result<Self, String> {
        let mapping = inspected.mapping_of(source);
        let statements = Statements::new(inspected, source, until)
            .ok_or("the target lacks a writable column that every event needs")?;
        let server = &inspected.server;
        let segments = concurrency.max(1) as u64;
        let has_views = destination.has_views;
        // Half of the server for all statements at once: the rest is for merges and for others.
        let of_server = server.memory.map(|bytes| bytes / 2 / segments);
        let limits = [of_server, server.statement_memory];
        Ok(Self {
            sorter: Sorter {
                source,
                guard: Guard::new(&mapping.of_keys(), Arc::clone(&store), until)?,
                statements,
                store,
                pool: budget.pool(),
                budget,
                shutdown: destination.shutdown.clone(),
                kept: None,
            },
            share: inspected.share,
            destination,
            slices: AtomicU32::new(1),
            read_ahead: Mutex::default(),
            rows_per_slice: budget.rows_per_statement(),
            ahead_bytes: budget.segment_bytes / 2,
            most_apart: budget.segment_bytes / BYTES_PER_KEY,
            succeeded: AtomicU32::new(0),
            last_took: AtomicU64::new(0),
            row_check: RowCheck::new(has_views),
            statement_bytes: limits.into_iter().flatten().min(),
            insert_threads: insert_threads(server, concurrency),
        })
    }

    /// The same, with keys of the partition that were read before.
    pub(crate) fn with_keys(mut self, file: Arc<KeyFile>, partition: SourcePartition<'_>) -> Self {
        self.sorter.kept = Some(KeptKeys {
            file,
            table: partition.table.clone(),
            partition_id: partition.id.to_owned(),
        });
        self
    }

    /// Writes a segment's events, as far as the server can make them. `name` is the attempt's own.
    ///
    /// # Errors
    /// [`WorkError`] if a statement fails, or on a signal. Some of the rows may then be in the target.
    pub(crate) async fn write(
        &self,
        segment: &Segment,
        name: &str,
        progress: &mut Progress,
        on_rows: &(dyn Fn(u64) + Sync),
    ) -> Result<Pushed, WorkError> {
        let (of, ahead) = self
            .take_read(segment)
            .unwrap_or_else(|| (self.slices_of(segment), Vec::new()));
        let mut ahead = ahead.into_iter();
        let statements = &self.sorter.statements;
        let connection = self.destination.connection_of(segment.number);
        let days = self.days_near(segment);
        let mut pushed = Pushed::default();
        let (mut rows, mut traces, mut rows_of_traces) =
            (KeyList::default(), KeyList::default(), KeyList::default());
        for number in 0..of {
            let slice = Slice { number, of };
            let started = Instant::now();
            let read = match ahead.next() {
                Some(read) => read,
                None => {
                    let read = self.sorter.read(&connection, segment, slice, &days).await;
                    read.map_err(|error| self.read_failed(error))?
                }
            };
            let sorted = block_in_place(|| self.sorter.sort(read))?;
            progress.written += sorted.left_out.written_before;
            let written = sorted.to_write;
            if written > 0 && !self.destination.dry_run {
                self.keep_pace(written, started, progress.has_sent).await?;
                let splits_blocks = self.destination.part_rows < BLOCK_ROWS;
                let sql = statements.insert(segment, slice, &days, &sorted, splits_blocks);
                let id = format!("{}-{name}-{number}", self.destination.query_prefix);
                let reported = self.insert(&connection, sql, id, progress).await?;
                self.row_check.check(segment.number, written, reported)?;
                progress.written += written;
                self.destination.telemetry.enriched(written);
            }
            pushed.count(&sorted, written, self.destination.dry_run);
            on_rows(sorted.read - sorted.apart());
            rows.extend(sorted.apart_rows);
            traces.extend(sorted.apart_traces);
            rows_of_traces.extend(sorted.rows_of_apart_traces);
            if rows.len() + rows_of_traces.len() > self.most_apart {
                return Err(RequestError::Unexpected(format!(
                    "more than {} of its rows have traces that are not near: use --engine embedded \
                     with --restart, a smaller --segment-rows or a larger --memory-limit",
                    self.most_apart
                ))
                .into());
            }
        }
        self.row_check.learn(segment.number, progress.has_sent);
        if !(rows.is_empty() && traces.is_empty()) {
            let (prewhere, condition) = statements.rest(&rows, &traces, &rows_of_traces);
            pushed.rest = Some(Rest {
                prewhere,
                condition,
                rows: (rows.len() + rows_of_traces.len()) as u64,
            });
        }
        Ok(pushed)
    }

    /// Waits as the throttle requires before so many rows are written, and between statements while the run
    /// is paused. A segment has begun with its first statement, which must fail if it is to fail.
    async fn keep_pace(
        &self,
        rows: u64,
        started: Instant,
        has_sent: bool,
    ) -> Result<(), WorkError> {
        let throttle = &self.destination.throttle;
        // What was read ahead took its time before; the last statement is the load.
        let last_took = Duration::from_millis(self.last_took.load(Ordering::Relaxed));
        let worked = started.elapsed() + last_took;
        let waiting = async {
            if let Some(pause) = throttle.pause_before(rows, 0, worked) {
                let mut changes = throttle.changes();
                let _waiting = throttle.waiting(pause.reason);
                tokio::select! {
                    () = tokio::time::sleep_until(pause.until) => {}
                    // The pause was computed for another speed.
                    () = changes.next() => {}
                }
            }
            if has_sent {
                throttle.may_begin().await;
            }
        };
        tokio::select! {
            () = waiting => Ok(()),
            _ = self.destination.shutdown.requested() => Err(WorkError::Interrupted),
        }
    }

    /// Reads the keys of a segment before it is written, so that many segments' traces can be looked up at
    /// once. Returns the traces not yet looked up.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal. The segment will be read when it is
    /// written.
    pub(crate) async fn read_ahead(&self, segment: &Segment) -> Result<Vec<TraceName>, WorkError> {
        let (of, days) = (self.slices_of(segment), self.days_near(segment));
        let connection = self.destination.connection_of(segment.number);
        let (mut slices, mut unknown) = (Vec::new(), Vec::new());
        for number in 0..of {
            let slice = Slice { number, of };
            let read = self.sorter.read(&connection, segment, slice, &days).await?;
            unknown.extend(block_in_place(|| self.sorter.unknown(&read))?);
            slices.push(read);
            if slices.iter().map(ReadSlice::bytes).sum::<usize>() >= self.ahead_bytes {
                break;
            }
        }
        self.ahead().insert(segment.number, (of, slices));
        Ok(unknown)
    }

    /// Whether no more segments should be read ahead.
    pub(crate) fn has_read_enough(&self) -> bool {
        let ahead = self.ahead();
        let slices = ahead.values().flat_map(|(_, slices)| slices);
        slices.map(ReadSlice::bytes).sum::<usize>() >= self.ahead_bytes
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<u32, (u32, Vec<ReadSlice>)>> {
        self.read_ahead
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take_read(&self, segment: &Segment) -> Option<(u32, Vec<ReadSlice>)> {
        self.ahead().remove(&segment.number)
    }

    fn slices_of(&self, segment: &Segment) -> u32 {
        let per_second = self.destination.throttle.state().rows_per_second;
        let of_pace = per_second.map_or(u64::MAX, |rows| {
            rows.saturating_mul(SECONDS_PER_SLICE).max(1)
        });
        let by_rows = segment.rows.div_ceil(self.rows_per_slice.min(of_pace));
        let by_rows = u32::try_from(by_rows).unwrap_or(MOST_SLICES);
        by_rows
            .max(self.slices.load(Ordering::Relaxed))
            .clamp(1, MOST_SLICES)
    }

    /// The days of a segment's rows and the one before, on which their traces may have begun. Traces that
    /// begin later than their observations are few, and each day is read anew for each segment.
    fn days_near(&self, segment: &Segment) -> RangeInclusive<Day> {
        let days = days_of(segment, &self.share.days());
        days.start().saturating_sub(1)..=*days.end()
    }

    /// Runs a statement. Returns how many rows the server reports, those of views included.
    async fn insert(
        &self,
        connection: &Connection,
        sql: String,
        query_id: String,
        progress: &mut Progress,
    ) -> Result<u64, WorkError> {
        let destination = &*self.destination;
        let part_bytes = destination.limits.part.bytes();
        let mut insert_settings = destination.part_settings(part_bytes);
        insert_settings.push(("max_insert_threads", self.insert_threads.to_string()));
        if let Some(bytes) = self.statement_bytes {
            insert_settings.push(("max_memory_usage", bytes.to_string()));
        }
        let of_final = OF_FINAL.map(|(name, value)| (name, value.to_string()));
        let block_rows = BLOCK_ROWS.min(destination.part_rows).to_string();
        let mut settings = vec![("max_block_size", block_rows)];
        settings.extend(of_final);
        let insert = InsertSelect {
            sql,
            settings,
            insert_settings,
            query_id: query_id.clone(),
        };
        progress.has_sent = true;
        progress.is_in_doubt = true;
        let _inserting = destination.throttle.inserting();
        let began = Instant::now();
        let answer = tokio::time::timeout(TABLE_TIMEOUT, connection.insert_select(&insert));
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            _ = destination.shutdown.requested() => {
                match tokio::time::timeout(LAST_INSERT, &mut answer).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        // The server would go on without us.
                        let end = leftover_inserts::end(&destination.connection, &query_id);
                        let _ = tokio::time::timeout(LAST_INSERT, end).await;
                        return Err(WorkError::Interrupted);
                    }
                }
            }
        };
        let answer = answer.unwrap_or(Err(RequestError::TimedOut {
            doing: "insert a segment's rows",
            limit: TABLE_TIMEOUT,
        }));
        match answer {
            Ok(written) => {
                progress.is_in_doubt = false;
                let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.last_took.store(took, Ordering::Relaxed);
                self.has_succeeded(part_bytes);
                Ok(written)
            }
            Err(error) => Err(self.failed(error, part_bytes, progress)),
        }
    }

    /// Has the next attempt ask for less where the server lacked memory.
    fn failed(&self, error: RequestError, part_bytes: usize, progress: &mut Progress) -> WorkError {
        let destination = &*self.destination;
        if matches!(error, RequestError::NotConnected(_)) {
            progress.has_sent = progress.written > 0;
            progress.is_in_doubt = false;
        }
        if error.is_lack_of_memory() {
            destination.limits.part.was_too_large(part_bytes);
        }
        WorkError::InsertFailed {
            table: destination.table.clone(),
            is_single_block: !self.divides_after(&error),
            error,
        }
    }

    /// Has the next attempt read fewer keys at once where they were too many for the server or a proxy.
    fn read_failed(&self, error: WorkError) -> WorkError {
        match error {
            WorkError::Request(error) if error.is_too_large() => WorkError::InsertFailed {
                table: self.destination.table.clone(),
                is_single_block: !self.divides_after(&error),
                error,
            },
            error => error,
        }
    }

    /// Makes slices smaller after a statement that was too large. Returns whether that is possible.
    fn divides_after(&self, error: &RequestError) -> bool {
        let slices = self.slices.load(Ordering::Relaxed);
        if error.is_too_large() {
            let more = (slices * 2).min(MOST_SLICES);
            self.slices.fetch_max(more, Ordering::Relaxed);
            self.succeeded.store(0, Ordering::Relaxed);
        }
        slices < MOST_SLICES
    }

    /// Lets parts and slices grow again, slowly.
    fn has_succeeded(&self, part_bytes: usize) {
        self.destination.limits.part.was_taken(part_bytes);
        let succeeded = self.succeeded.fetch_add(1, Ordering::Relaxed) + 1;
        if succeeded.is_multiple_of(PATIENCE) {
            let slices = self.slices.load(Ordering::Relaxed);
            self.slices.store((slices / 2).max(1), Ordering::Relaxed);
        }
    }
}

/// Threads that write parts in each of several statements: all of the server's together.
pub(crate) fn insert_threads(server: &ServerInfo, concurrency: usize) -> usize {
    let of_server = server
        .threads
        .and_then(|threads| usize::try_from(threads).ok());
    let of_each = of_server.unwrap_or(1) / concurrency.max(1);
    of_each.clamp(1, MOST_INSERT_THREADS)
}

impl Pushed {
    fn count(&mut self, sorted: &SortedRows, written: u64, dry_run: bool) {
        let LeftOut { written_before, .. } = sorted.left_out;
        self.counts += SegmentCounts {
            observations: written + written_before,
            without_trace: sorted.without_trace,
            inserted: written_before + if dry_run { 0 } else { written },
            left_out: sorted.left_out,
            ..SegmentCounts::default()
        };
    }
}
