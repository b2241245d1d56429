//! Segments, several at once: read → enrich → insert, bounded.
//!
//! Each segment holds at most one block that is arriving, one batch that is
//! being filled and one that is being sent. A segment is done when the insert of
//! its last batch is acknowledged; if anything of it fails in a way that may
//! pass, all of it is done again, and the target's ReplacingMergeTree makes one
//! row of equal ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, JoinSet};

use crate::batch::{Batch, SealedBatch};
use crate::buffer_pool::BufferPool;
use crate::clickhouse::{Connection, InsertRequest, NativeStream, RequestError};
use crate::enrich::Enricher;
use crate::error::{Error, WorkError};
use crate::memory::Budget;
use crate::native::BlockReader;
use crate::plan::Segment;
use crate::progress::Phase;
use crate::retry::RetryPolicy;
use crate::shutdown::Shutdown;

/// ClickHouse closes a response that nobody reads for 30 s (`http_send_timeout`;
/// giving another value with the query is not honoured: measured on 26.7). So
/// while an insert takes long, a little is read at least this often.
const SIP_EVERY: Duration = Duration::from_secs(8);
/// How long a sip waits for bytes.
const SIP_FOR: Duration = Duration::from_millis(500);
/// How long an insert may still take once the run is asked to end.
const LAST_INSERT: Duration = Duration::from_secs(10);

/// What all segments share.
pub struct Pipeline {
    /// The server.
    pub connection: Connection,
    /// Makes events of observations.
    pub enricher: Enricher,
    /// The query of one segment.
    pub query: SegmentQuery,
    /// `INSERT INTO … FORMAT Native`
    pub insert_sql: String,
    /// Whether views count in the rows that are written.
    pub target_has_views: bool,
    /// Distinguishes the batches of this run from those of any other.
    pub run_id: String,
    /// Insert nothing.
    pub dry_run: bool,
    /// How much memory everything may take.
    pub budget: Budget,
    /// Buffers of blocks.
    pub pool: BufferPool,
    /// Most rows in one insert.
    pub batch_rows: usize,
    /// Most rows in one block that is read.
    pub block_rows: usize,
    /// When to try again.
    pub retries: RetryPolicy,
    /// Segments at once.
    pub concurrency: usize,
    /// Whether to end.
    pub shutdown: Shutdown,
}

/// How the rows of a segment are asked for.
pub struct SegmentQuery {
    /// `SELECT … FROM … FINAL … WHERE …`, to which the segment's condition is added.
    pub select: String,
    /// Table whose traces are left out, quoted, if any are.
    pub excluded_by: Option<String>,
}

impl SegmentQuery {
    fn sql(&self, segment: &Segment) -> String {
        let mut sql = format!("{} AND {}", self.select, segment.predicate());
        if let Some(table) = &self.excluded_by {
            let projects = segment
                .project_condition("i.project_id")
                .map_or_else(String::new, |condition| format!(" WHERE {condition}"));
            sql.push_str(&format!(
                " AND (o.project_id, o.trace_id) NOT IN \
                 (SELECT i.project_id, i.trace_id FROM {table} AS i FINAL{projects})"
            ));
        }
        sql
    }
}

/// The settings with which a segment is read, in blocks of at most `block_rows`
/// rows and about `block_bytes` bytes.
pub fn read_settings(block_rows: usize, block_bytes: usize) -> [(&'static str, String); 6] {
    [
        ("max_block_size", block_rows.to_string()),
        ("preferred_block_size_bytes", block_bytes.to_string()),
        // With it, blocks are whole granules: the setting before is not heeded.
        ("use_query_condition_cache", "0".to_owned()),
        // Deleted rows must be seen by FINAL before a condition hides them.
        ("optimize_move_to_prewhere_if_final", "0".to_owned()),
        // Otherwise every thread's layer reads a granule of every part again.
        (
            "split_intersecting_parts_ranges_into_layers_final",
            "0".to_owned(),
        ),
        // A key never lies in two partitions, so none has to be compared across them.
        (
            "do_not_merge_across_partitions_select_final",
            "1".to_owned(),
        ),
    ]
}

/// What it took, over all segments of this process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Tries that were repeated.
    pub retries: AtomicU64,
    /// Time spent waiting for inserts, summed.
    pub insert_nanoseconds: AtomicU64,
}

/// What one segment came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCounts {
    /// Observations read.
    pub observations: u64,
    /// Rows acknowledged.
    pub inserted: u64,
    /// Observations whose trace was not found.
    pub without_trace: u64,
}

/// Works through all segments; the largest first, so that none holds the rest
/// up. `on_done` is told of each that is done, one at a time.
///
/// # Errors
/// [`Error::Failed`] with the segment and the server's words;
/// [`Error::Interrupted`] where the run was asked to end. Segments that were
/// done before stay done.
pub async fn run(
    pipeline: Arc<Pipeline>,
    mut segments: Vec<Segment>,
    counters: Arc<Counters>,
    phase: Arc<Phase>,
    mut on_done: impl FnMut(u32, SegmentCounts) -> Result<(), Error>,
) -> Result<(), Error> {
    segments.sort_by_key(|segment| segment.rows);
    let mut running = JoinSet::new();
    let mut first_error = None;
    loop {
        let goes_on = first_error.is_none() && pipeline.shutdown.signal().is_none();
        while goes_on
            && running.len() < pipeline.concurrency
            && let Some(segment) = segments.pop()
        {
            let work = SegmentWork {
                pipeline: Arc::clone(&pipeline),
                counters: Arc::clone(&counters),
                phase: Arc::clone(&phase),
                segment,
            };
            running.spawn(work.run());
        }
        let outcome = match running.join_next().await {
            None => break,
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Error::failed("a segment ended unexpectedly", error)),
        };
        let noted = outcome.and_then(|(number, counts)| on_done(number, counts));
        if let Err(error) = noted {
            // The others are not waited for: they may take long, or fail alike.
            running.abort_all();
            first_error.get_or_insert(error);
        }
    }
    match (first_error, pipeline.shutdown.signal()) {
        (Some(error), None) => Err(error),
        (_, Some(signal)) => Err(Error::Interrupted {
            signal,
            message: "interrupted".to_owned(),
        }),
        (None, None) => Ok(()),
    }
}

/// One segment on its way.
struct SegmentWork {
    pipeline: Arc<Pipeline>,
    counters: Arc<Counters>,
    phase: Arc<Phase>,
    segment: Segment,
}

/// How far one try at a segment got, for the progress bar.
#[derive(Default)]
struct Attempt {
    number: u32,
    shown_rows: u64,
}

impl SegmentWork {
    async fn run(self) -> Result<(u32, SegmentCounts), Error> {
        let mut failures = 0;
        let mut block_rows = self.pipeline.block_rows;
        let mut attempt = Attempt::default();
        loop {
            let error = match self.try_once(block_rows, &mut attempt).await {
                Ok(counts) => {
                    self.phase
                        .finish_piece(attempt.shown_rows, self.segment.rows);
                    return Ok((self.segment.number, counts));
                }
                Err(error) => error,
            };
            self.phase.go_back(attempt.shown_rows);
            attempt.shown_rows = 0;
            attempt.number += 1;
            if let Some(fewer) = error.smaller_blocks(block_rows) {
                // Rows are larger than expected here, and usual elsewhere.
                block_rows = fewer;
                continue;
            }
            failures += 1;
            let Some(wait) = self.wait(&error, failures) else {
                return Err(self.give_up(&error, failures));
            };
            // Asked to end, there is no use in waiting: the next try ends at once.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.pipeline.shutdown.requested() => {}
            }
        }
    }

    fn wait(&self, error: &WorkError, failures: u32) -> Option<Duration> {
        if !error.is_passing() {
            return None;
        }
        let wait = self.pipeline.retries.wait_after(failures)?;
        self.counters.retries.fetch_add(1, Ordering::Relaxed);
        self.phase.note(format!(
            "segment {}: {error}; trying again in {:.0} s",
            self.segment.number,
            wait.as_secs_f64().ceil()
        ));
        Some(wait)
    }

    fn give_up(&self, error: &WorkError, failures: u32) -> Error {
        let tries = match failures {
            0 | 1 => String::new(),
            _ => format!(" ({failures} tries)"),
        };
        Error::Failed(format!(
            "segment {} could not be done{tries}: {error}{}",
            self.segment.number,
            error.advice()
        ))
    }

    async fn try_once(
        &self,
        block_rows: usize,
        attempt: &mut Attempt,
    ) -> Result<SegmentCounts, WorkError> {
        let mut sender = Sender::new(self, attempt.number);
        match self.read_and_send(block_rows, attempt, &mut sender).await {
            Ok(()) => sender.finish().await,
            Err(error) => {
                sender.abandon(&error).await;
                Err(error)
            }
        }
    }

    async fn read_and_send(
        &self,
        block_rows: usize,
        attempt: &mut Attempt,
        sender: &mut Sender<'_>,
    ) -> Result<(), WorkError> {
        let pipeline = &self.pipeline;
        let settings = read_settings(block_rows, pipeline.budget.preferred_block_bytes);
        let mut stream = pipeline
            .connection
            .stream(&pipeline.query.sql(&self.segment), &settings)?;
        let mut reader = BlockReader::new(pipeline.budget.max_block_bytes, &pipeline.pool);
        let compression = pipeline.connection.compression();
        let mut batch = Batch::new(compression);
        loop {
            while let Some(block) = reader.next_block()? {
                let enriched = tokio::task::block_in_place(|| pipeline.enricher.enrich(&block))?;
                drop(block);
                if self.is_full(&batch, enriched.rows, enriched.held_bytes) {
                    let full = std::mem::replace(&mut batch, Batch::new(compression));
                    sender.send(full, &mut stream, &mut reader).await?;
                }
                attempt.shown_rows += enriched.rows as u64;
                self.phase.advance(enriched.rows as u64);
                tokio::task::block_in_place(|| batch.push(enriched)).map_err(compression_failed)?;
            }
            let chunk = tokio::select! {
                chunk = stream.next_chunk() => chunk?,
                () = pipeline.shutdown.requested() => return Err(WorkError::Interrupted),
            };
            match chunk {
                Some(chunk) => reader.push(&chunk),
                None => break,
            }
        }
        reader.finish()?;
        sender.send(batch, &mut stream, &mut reader).await
    }

    /// Whether a batch must be sent before so many rows and bytes are added.
    fn is_full(&self, batch: &Batch, rows: usize, bytes: usize) -> bool {
        batch.rows() > 0
            && (batch.rows() + rows > self.pipeline.batch_rows
                || batch.bytes() + bytes > self.pipeline.budget.batch_bytes)
    }
}

fn compression_failed(error: std::io::Error) -> WorkError {
    WorkError::Request(RequestError::Unexpected(format!(
        "a batch cannot be compressed: {error}"
    )))
}

/// Sends the batches of one try at a segment, one at a time.
struct Sender<'a> {
    work: &'a SegmentWork,
    attempt: u32,
    batches: u32,
    in_flight: Option<JoinHandle<Result<(), WorkError>>>,
    counts: SegmentCounts,
}

impl<'a> Sender<'a> {
    fn new(work: &'a SegmentWork, attempt: u32) -> Self {
        Self {
            work,
            attempt,
            batches: 0,
            in_flight: None,
            counts: SegmentCounts::default(),
        }
    }

    /// Waits for the batch before, sipping from the stream meanwhile, and then
    /// begins to send this one.
    async fn send(
        &mut self,
        batch: Batch,
        stream: &mut NativeStream,
        reader: &mut BlockReader,
    ) -> Result<(), WorkError> {
        if batch.rows() == 0 {
            return Ok(());
        }
        let sealed = tokio::task::block_in_place(|| batch.seal()).map_err(compression_failed)?;
        self.settle(Some((stream, reader))).await?;
        self.counts.observations += sealed.rows as u64;
        self.counts.without_trace += sealed.without_trace as u64;
        if self.work.pipeline.dry_run {
            return Ok(());
        }
        self.counts.inserted += sealed.rows as u64;
        let request = self.request(sealed);
        let (pipeline, counters, phase, number) = (
            Arc::clone(&self.work.pipeline),
            Arc::clone(&self.work.counters),
            Arc::clone(&self.work.phase),
            self.work.segment.number,
        );
        self.in_flight = Some(tokio::spawn(async move {
            insert_with_retries(&pipeline, &counters, &phase, number, &request).await
        }));
        Ok(())
    }

    fn request(&mut self, sealed: SealedBatch) -> InsertRequest {
        let pipeline = &self.work.pipeline;
        // Another try at the segment may cut its rows into other batches, so
        // the token names the try: the same token is always the same bytes.
        let deduplication_token = format!(
            "{}-{}-{}-{}",
            pipeline.run_id, self.work.segment.number, self.attempt, self.batches
        );
        self.batches += 1;
        InsertRequest {
            sql: pipeline.insert_sql.clone(),
            body: sealed.body,
            rows: sealed.rows as u64,
            deduplication_token,
            has_views: pipeline.target_has_views,
        }
    }

    /// Waits for the batch in flight, if there is one; not for long, once the
    /// run is asked to end.
    async fn settle(
        &mut self,
        mut source: Option<(&mut NativeStream, &mut BlockReader)>,
    ) -> Result<(), WorkError> {
        loop {
            let Some(in_flight) = &mut self.in_flight else {
                return Ok(());
            };
            let shutdown = &self.work.pipeline.shutdown;
            let patience = async {
                shutdown.requested().await;
                tokio::time::sleep(LAST_INSERT).await;
            };
            let has_source = source.is_some() && shutdown.signal().is_none();
            tokio::select! {
                result = in_flight => {
                    self.in_flight = None;
                    return result.unwrap_or_else(|error| {
                        Err(RequestError::Unexpected(format!("an insert ended: {error}")).into())
                    });
                }
                () = patience => {
                    self.abort().await;
                    return Err(WorkError::Interrupted);
                }
                () = tokio::time::sleep(SIP_EVERY), if has_source => {}
            }
            let Some((stream, reader)) = &mut source else {
                continue;
            };
            // No more than a block's bytes: then rather let the read break, and
            // the segment be done again, than go over budget. The wait is
            // short, so that the insert's end is not missed.
            if reader.buffered_bytes() < self.work.pipeline.budget.max_block_bytes
                && let Ok(chunk) = tokio::time::timeout(SIP_FOR, stream.next_chunk()).await
                && let Some(chunk) = chunk?
            {
                reader.push(&chunk);
            }
        }
    }

    /// Ends what is in flight after the try has failed. An insert that began
    /// before the run was asked to end may still be acknowledged.
    async fn abandon(&mut self, error: &WorkError) {
        if *error == WorkError::Interrupted {
            // Whatever comes of it, the segment is not done.
            let _ = self.settle(None).await;
        }
        self.abort().await;
    }

    /// Ends the insert in flight and waits until its memory is given back, so
    /// that the next try may take as much.
    async fn abort(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.abort();
            let _ = in_flight.await;
        }
    }

    async fn finish(&mut self) -> Result<SegmentCounts, WorkError> {
        self.settle(None).await?;
        Ok(self.counts)
    }
}

impl Drop for Sender<'_> {
    /// A try that is given up leaves no insert behind.
    fn drop(&mut self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.abort();
        }
    }
}

async fn insert_with_retries(
    pipeline: &Pipeline,
    counters: &Counters,
    phase: &Phase,
    segment: u32,
    request: &InsertRequest,
) -> Result<(), WorkError> {
    let started = Instant::now();
    let mut failures = 0;
    let result = loop {
        let error = match pipeline.connection.insert(request).await {
            Ok(()) => break Ok(()),
            Err(error) => error,
        };
        failures += 1;
        let wait = error
            .is_passing()
            .then(|| pipeline.retries.wait_after(failures));
        let Some(wait) = wait.flatten() else {
            break Err(WorkError::InsertGivenUp { error, failures });
        };
        counters.retries.fetch_add(1, Ordering::Relaxed);
        phase.note(format!(
            "segment {segment}: an insert failed: {error}; trying again in {:.0} s",
            wait.as_secs_f64().ceil()
        ));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = pipeline.shutdown.requested() => break Err(WorkError::Interrupted),
        }
    };
    let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    counters
        .insert_nanoseconds
        .fetch_add(nanoseconds, Ordering::Relaxed);
    result
}
