//! Batches on their way into the target: one at a time for each segment, sent again where the
//! server has certainly written nothing of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::batch::{Batch, BatchLimit, SealedBatch};
use crate::backfill::error::WorkError;
use crate::clickhouse::retry::Retries;
use crate::clickhouse::{Connection, InsertRequest, RequestError};
use crate::native::BlockReader;
use crate::shutdown::Shutdown;
use crate::state::counts::SegmentCounts;

/// ClickHouse closes a response that nobody reads for 30 s (`http_send_timeout`;
/// giving another value with the query is not honoured: measured on 26.7). So
/// while an insert takes long, a little is read at least this often.
const SIP_EVERY: Duration = Duration::from_secs(8);
/// Bytes of a sip. The kernels on both sides hold megabytes of a response that
/// nobody reads; ClickHouse only sees that something was read when a third of
/// what its own holds has gone.
const SIP_BYTES: usize = 1024 * 1024;
/// How long a sip waits for bytes.
const SIP_FOR: Duration = Duration::from_millis(500);
/// How long an insert may still take once the run is asked to end.
const LAST_INSERT: Duration = Duration::from_secs(10);

/// Where batches go. Shared by all segments.
pub(crate) struct Destination {
    /// The server.
    pub connection: Connection,
    /// `INSERT INTO … FORMAT Native`
    pub insert_sql: String,
    /// Whether views count in the rows that are written.
    pub has_views: bool,
    /// What the query ids of all inserts of this process begin with.
    pub query_prefix: String,
    /// Insert nothing.
    pub dry_run: bool,
    /// How large batches may be.
    pub limit: BatchLimit,
    /// When to try again.
    pub retries: Retries,
    /// Whether to end.
    pub shutdown: Shutdown,
    /// Time spent waiting for inserts, summed over all segments.
    pub insert_nanoseconds: AtomicU64,
}

/// Something that gives bytes, a little at a time.
pub(crate) trait KeepAlive {
    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// Whatever ends it before.
    fn next_chunk(&mut self) -> impl Future<Output = Result<Option<Bytes>, WorkError>> + Send;
}

/// What the rows of a segment arrive in, to be sipped from while an insert takes long.
pub(crate) struct Arriving<'a, S> {
    /// Where they come from.
    pub rows: &'a mut S,
    /// What takes its bytes.
    pub reader: &'a mut BlockReader,
    /// Most bytes that may wait in it.
    pub max_buffered_bytes: usize,
}

impl<S: KeepAlive> Arriving<'_, S> {
    /// Reads a little, if there is room for it: rather let the read break, and
    /// the segment be done again, than go over budget. The wait is short, so
    /// that the end of the insert is not missed.
    async fn sip(&mut self) -> Result<(), WorkError> {
        let enough = self
            .max_buffered_bytes
            .min(self.reader.buffered_bytes() + SIP_BYTES);
        let ends = tokio::time::Instant::now() + SIP_FOR;
        while self.reader.buffered_bytes() < enough
            && let Ok(chunk) = tokio::time::timeout_at(ends, self.rows.next_chunk()).await
            && let Some(chunk) = chunk?
        {
            self.reader.push(&chunk);
        }
        Ok(())
    }
}

/// Nothing to sip from.
const NOWHERE: Option<Arriving<'static, Nothing>> = None;

/// Gives nothing.
struct Nothing;

impl KeepAlive for Nothing {
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, WorkError> {
        Ok(None)
    }
}

/// Sends the batches of one try at a piece of work, one at a time.
pub(crate) struct Sender {
    destination: Arc<Destination>,
    /// What it is a piece of, for people.
    title: Arc<str>,
    /// No other try has this name.
    name: String,
    batches: u32,
    in_flight: Option<JoinHandle<Result<(), WorkError>>>,
    /// Bytes of memory that the batch in flight holds.
    held_bytes: usize,
    counts: SegmentCounts,
    /// Rows of the batch in flight.
    rows_in_flight: u64,
    /// Rows that the server has acknowledged.
    acknowledged: u64,
}

impl Sender {
    /// A sender for one try at the piece of work that `title` names. Another try must have another
    /// `name`, so that its inserts can be told from those before.
    pub(crate) fn new(destination: &Arc<Destination>, title: String, name: String) -> Self {
        Self {
            destination: Arc::clone(destination),
            title: title.into(),
            name,
            batches: 0,
            in_flight: None,
            held_bytes: 0,
            counts: SegmentCounts::default(),
            rows_in_flight: 0,
            acknowledged: 0,
        }
    }

    /// What the query ids of its inserts begin with.
    pub(crate) fn query_prefix(&self) -> String {
        format!("{}-{}-", self.destination.query_prefix, self.name)
    }

    /// Whether anything was sent, so that rows of it may be in the target.
    pub(crate) fn has_sent(&self) -> bool {
        self.batches > 0
    }

    /// Rows that the server has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Bytes of memory that the batch in flight holds.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Begins to send a batch. The one before must have been settled.
    pub(crate) fn send(&mut self, batch: Batch) {
        debug_assert!(self.in_flight.is_none(), "one batch at a time");
        if batch.rows() == 0 {
            return;
        }
        let sealed = batch.seal();
        let rows = sealed.rows() as u64;
        self.counts.observations += rows;
        self.counts.without_trace += sealed.without_trace() as u64;
        self.counts.in_experiments += sealed.in_experiments() as u64;
        if self.destination.dry_run {
            return;
        }
        self.counts.inserted += rows;
        self.held_bytes = sealed.held_bytes();
        let delivery = Delivery {
            destination: Arc::clone(&self.destination),
            title: Arc::clone(&self.title),
            name: format!("{}{}", self.query_prefix(), self.batches),
            batch: sealed,
        };
        self.batches += 1;
        self.rows_in_flight = rows;
        self.in_flight = Some(tokio::spawn(delivery.run()));
    }

    /// Waits for the batch in flight, if there is one, sipping from the source
    /// meanwhile; not for long, once the run is asked to end.
    ///
    /// # Errors
    /// Whatever became of the batch.
    pub(crate) async fn settle<S: KeepAlive>(
        &mut self,
        mut source: Option<Arriving<'_, S>>,
    ) -> Result<(), WorkError> {
        let shutdown = self.destination.shutdown.clone();
        // Outside the loop, so that it is not begun anew after a sip.
        let mut patience = std::pin::pin!(async {
            shutdown.requested().await;
            tokio::time::sleep(LAST_INSERT).await;
        });
        loop {
            let Some(in_flight) = &mut self.in_flight else {
                return Ok(());
            };
            let sips = source.is_some() && shutdown.signal().is_none();
            tokio::select! {
                result = in_flight => {
                    self.in_flight = None;
                    self.held_bytes = 0;
                    let result = result.unwrap_or_else(|error| {
                        Err(RequestError::Unexpected(format!("an insert ended: {error}")).into())
                    });
                    if result.is_ok() {
                        self.acknowledged += self.rows_in_flight;
                    }
                    return result;
                }
                () = &mut patience => {
                    self.abort().await;
                    return Err(WorkError::Interrupted);
                }
                () = tokio::time::sleep(SIP_EVERY), if sips => {}
            }
            if let Some(source) = &mut source {
                source.sip().await?;
            }
        }
    }

    /// Ends what is in flight after the try has failed. An insert that began
    /// before the run was asked to end may still be acknowledged.
    pub(crate) async fn abandon(&mut self, error: &WorkError) {
        if *error == WorkError::Interrupted {
            // Whatever comes of it, the segment is not done.
            let _ = self.settle(NOWHERE).await;
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
        self.held_bytes = 0;
    }

    /// Waits for the last batch.
    ///
    /// # Errors
    /// Whatever became of it.
    pub(crate) async fn finish(&mut self) -> Result<(), WorkError> {
        self.settle(NOWHERE).await
    }

    /// What all batches came to, once the last one is acknowledged.
    pub(crate) fn counts(&self) -> SegmentCounts {
        self.counts
    }
}

impl Drop for Sender {
    /// A try that is given up leaves no insert behind.
    fn drop(&mut self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.abort();
        }
    }
}

/// A batch on its way.
struct Delivery {
    destination: Arc<Destination>,
    title: Arc<str>,
    name: String,
    batch: SealedBatch,
}

impl Delivery {
    async fn run(self) -> Result<(), WorkError> {
        let started = Instant::now();
        let result = self.insert().await;
        let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.destination
            .insert_nanoseconds
            .fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }

    /// Inserts the batch. What the server refused before it wrote anything is sent again; after any
    /// other error it must be seen first what is there.
    async fn insert(&self) -> Result<(), WorkError> {
        let destination = &*self.destination;
        let blocks = self.batch.blocks();
        let request = InsertRequest {
            sql: destination.insert_sql.clone(),
            body: self.batch.body(),
            rows: self.batch.rows() as u64,
            query_id: self.name.clone(),
            has_views: destination.has_views,
        };
        let mut attempts = destination.retries.attempts();
        loop {
            let Err(error) = destination.connection.insert(&request).await else {
                destination.limit.was_taken();
                return Ok(());
            };
            if error.is_too_large() {
                destination.limit.was_too_large(self.batch.bytes());
            }
            if error.is_too_large() || !error.is_refusal() {
                let is_single_block = blocks == 1;
                return Err(WorkError::InsertFailed {
                    error,
                    is_single_block,
                });
            }
            let what = format!("{}: an insert failed: {error}", self.title);
            let again = attempts.again(error.is_passing(), what).await;
            if destination.shutdown.signal().is_some() {
                return Err(WorkError::Interrupted);
            }
            if !again {
                let failures = attempts.failures();
                return Err(WorkError::InsertGivenUp { error, failures });
            }
        }
    }
}
