//! Sends the rows of one attempt as one insert, which the server divides into parts. Uses several
//! consecutive inserts only if time or body size is limited.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::block_in_place;
use tokio::time::Instant;

use super::compress::{Compressor, SealedBlock};
use super::keep_alive::{Arriving, KeepAlive};
use super::limits::{InsertLimits, SMALLEST_PART};
use crate::backfill::error::WorkError;
use crate::clickhouse::retry::Retries;
use crate::clickhouse::{Connection, InsertRequest, OpenInsert, RequestError};
use crate::enrich::EnrichedBlock;
use crate::shutdown::Shutdown;
use crate::state::counts::SegmentCounts;
use crate::telemetry::Telemetry;
use crate::throttle::{Pause, Throttle};

/// ClickHouse abandons an insert that receives nothing for 30 s (`http_receive_timeout`). After
/// this long without rows an insert is ended, and the next rows start another.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// How long the server may take to accept a block, or to answer at the end.
const LONGEST_STALL: Duration = Duration::from_secs(900);
/// How long an insert may still take after a signal.
pub(crate) const LAST_INSERT: Duration = Duration::from_secs(10);
/// How long an insert may still take after its attempt failed: what it finishes writing need not be
/// sent again.
const FAILED_INSERT: Duration = Duration::from_secs(60);

/// Where events go. All segments share one.
pub(crate) struct Destination {
    /// The server.
    pub connection: Connection,
    /// The table name, for messages.
    pub table: String,
    /// `INSERT INTO … FORMAT Native`
    pub insert_sql: String,
    /// Whether the number of written rows includes those of views.
    pub has_views: bool,
    /// Query id prefix of all inserts of this process.
    pub query_prefix: String,
    /// Whether to insert nothing.
    pub dry_run: bool,
    /// Rows per part, unless the byte limit comes first.
    pub part_rows: usize,
    /// Limits on parts and inserts.
    pub limits: InsertLimits,
    /// Maximum duration of one insert, if the user's profile limits it.
    pub longest_insert: Option<Duration>,
    /// Bytes that may wait to be sent, per segment.
    pub backlog_bytes: usize,
    /// Prepares blocks for sending.
    pub compressor: Compressor,
    /// When to retry.
    pub retries: Retries,
    /// Signals a request to stop.
    pub shutdown: Shutdown,
    /// Limits the speed.
    pub throttle: Throttle,
    /// Counters for metrics.
    pub telemetry: Telemetry,
    /// The source's name in the metrics.
    pub source: &'static str,
}

impl Destination {
    /// The connection for a segment. Segments alternate between servers, and all of one segment's
    /// queries go to the same server while it answers.
    pub(crate) fn connection_of(&self, segment: u32) -> Connection {
        self.connection.at(segment as usize)
    }

    /// The settings that have the server end a part at `part_bytes`, or at the most rows of a part.
    pub(crate) fn part_settings(&self, part_bytes: usize) -> Vec<(&'static str, String)> {
        vec![
            ("min_insert_block_size_bytes", part_bytes.to_string()),
            ("min_insert_block_size_rows", self.part_rows.to_string()),
        ]
    }
}

/// Sends the blocks of one attempt.
pub(crate) struct Sender {
    destination: Arc<Destination>,
    connection: Connection,
    /// The attempt's unique name.
    name: String,
    inserts: u32,
    /// Inserts that did not reach a server.
    unreached: u32,
    /// Inserts acknowledged by the server.
    answered: u32,
    open: Option<Open>,
    counts: SegmentCounts,
    /// Rows acknowledged by the server.
    acknowledged: u64,
    /// Time of the last send, or of creation.
    sent: Instant,
}

/// The current insert.
struct Open {
    insert: OpenInsert,
    begun: Instant,
    /// When it last received a block.
    fed: Instant,
    blocks: u32,
    /// Bytes of its body.
    body_bytes: usize,
    /// Uncompressed bytes of its blocks.
    bytes: usize,
    /// Uncompressed bytes of its largest block.
    largest_block: usize,
    /// Bytes the server collects for a part.
    part_bytes: usize,
}

impl Open {
    /// Whether smaller parts or inserts may help: more than one block was rejected.
    fn is_divisible(&self, error: &RequestError) -> bool {
        self.blocks > 1
            && (!error.is_lack_of_memory()
                || self.part_bytes > self.largest_block.max(SMALLEST_PART))
    }
}

impl Sender {
    /// A sender for one attempt at a segment. Each attempt needs its own `name`, which keeps its
    /// inserts apart from earlier ones.
    pub(crate) fn new(destination: &Arc<Destination>, segment: u32, name: String) -> Self {
        Self {
            connection: destination.connection_of(segment),
            destination: Arc::clone(destination),
            name,
            inserts: 0,
            unreached: 0,
            answered: 0,
            open: None,
            counts: SegmentCounts::default(),
            acknowledged: 0,
            sent: Instant::now(),
        }
    }

    /// Query id prefix of its inserts, if a server may still be running one.
    pub(crate) fn in_doubt(&self) -> Option<String> {
        let is_in_doubt = self.inserts > self.unreached + self.answered;
        is_in_doubt.then(|| format!("{}-{}-", self.destination.query_prefix, self.name))
    }

    /// Whether anything was sent, so rows may be in the target.
    pub(crate) fn has_sent(&self) -> bool {
        self.inserts > self.unreached
    }

    /// Rows acknowledged by the server.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Memory held by unsent blocks, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        let open = self.open.as_ref();
        open.map_or(0, |open| open.insert.held_bytes())
    }

    /// The counts over all blocks, valid once the last insert is acknowledged.
    pub(crate) fn counts(&self) -> SegmentCounts {
        self.counts
    }

    /// When the current insert, if any, will have waited too long for rows or reached its maximum
    /// duration.
    pub(crate) fn silent_until(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        let silent = open.fed + LONGEST_SILENCE;
        let longest = self.destination.longest_insert;
        Some(longest.map_or(silent, |longest| silent.min(open.begun + longest)))
    }

    /// Queues a block for sending, once there is room.
    ///
    /// # Errors
    /// [`WorkError`] if the insert failed, or [`WorkError::Interrupted`] on a signal.
    pub(crate) async fn send<S: KeepAlive>(
        &mut self,
        block: EnrichedBlock,
        mut source: Arriving<'_, S>,
    ) -> Result<(), WorkError> {
        let rows = block.rows as u64;
        let throttle = &self.destination.throttle;
        if let Some(pause) = throttle.pause_before(rows, block.bytes() as u64, self.sent.elapsed())
        {
            self.pause(pause, &mut source).await?;
        }
        self.send_now(block, source).await?;
        self.sent = Instant::now();
        Ok(())
    }

    /// Pauses as the throttle requires, reading ahead meanwhile.
    async fn pause<S: KeepAlive>(
        &mut self,
        pause: Pause,
        source: &mut Arriving<'_, S>,
    ) -> Result<(), WorkError> {
        let destination = Arc::clone(&self.destination);
        let mut changes = destination.throttle.changes();
        if self
            .silent_until()
            .is_some_and(|silent| silent < pause.until)
        {
            // The server would abandon the insert.
            let held_bytes = self.held_bytes();
            self.finish(source).await?;
            source.gives_back(held_bytes);
        }
        let _waiting = destination.throttle.waiting(pause.reason);
        let waiting = async {
            tokio::select! {
                () = tokio::time::sleep_until(pause.until) => Ok(()),
                // The pause was computed for another speed.
                () = changes.next() => Ok(()),
                _ = destination.shutdown.requested() => Err(WorkError::Interrupted),
            }
        };
        source.meanwhile(waiting).await
    }

    async fn send_now<S: KeepAlive>(
        &mut self,
        block: EnrichedBlock,
        mut source: Arriving<'_, S>,
    ) -> Result<(), WorkError> {
        let rows = block.rows as u64;
        self.counts.observations += rows;
        self.counts.without_trace += block.without_trace as u64;
        self.counts.in_experiments += block.in_experiments as u64;
        self.destination.telemetry.enriched(rows);
        if self.destination.dry_run {
            return Ok(());
        }
        self.counts.inserted += rows;
        let bytes = block.bytes();
        let compressor = &self.destination.compressor;
        let block = block_in_place(|| compressor.seal(block)).map_err(compression_failed)?;
        if self.needs_another_insert(&block) {
            self.finish(&mut source).await?;
        }
        let most = self.destination.backlog_bytes;
        let room = most.saturating_sub(block.held_bytes);
        self.wait_for_room(room, &mut source).await?;
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let (connection, destination) = (&self.connection, &self.destination);
                none.insert(begin(
                    connection,
                    destination,
                    &self.name,
                    &mut self.inserts,
                )?)
            }
        };
        open.fed = Instant::now();
        open.blocks += 1;
        open.bytes += bytes;
        open.body_bytes += block.bytes();
        open.largest_block = open.largest_block.max(bytes);
        open.insert.push(block.pieces, block.held_bytes, rows);
        self.destination.throttle.has_sent(bytes as u64);
        Ok(())
    }

    fn needs_another_insert(&self, block: &SealedBlock) -> bool {
        let destination = &*self.destination;
        self.open.as_ref().is_some_and(|open| {
            let is_old = |longest| open.begun.elapsed() > longest;
            open.body_bytes.saturating_add(block.bytes()) > destination.limits.body_bytes()
                || destination.longest_insert.is_some_and(is_old)
        })
    }

    /// Waits until unsent blocks hold at most `held_bytes`, reading ahead meanwhile.
    ///
    /// # Errors
    /// As for [`Sender::send`].
    pub(crate) async fn wait_for_room<S: KeepAlive>(
        &mut self,
        held_bytes: usize,
        source: &mut Arriving<'_, S>,
    ) -> Result<(), WorkError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let shutdown = &self.destination.shutdown;
        let inserting = self.destination.throttle.inserting();
        let waiting = async {
            tokio::select! {
                waited = within(LONGEST_STALL, open.insert.at_most(held_bytes)) => Ok(waited),
                _ = shutdown.requested() => Err(WorkError::Interrupted),
            }
        };
        let waited = source.meanwhile(waiting).await;
        drop(inserting);
        waited?.map_err(|error| self.failed(error))
    }

    /// Ends the current insert, if any, and waits for its answer, reading ahead meanwhile. After a
    /// signal it waits only briefly.
    ///
    /// # Errors
    /// As for [`Sender::send`].
    pub(crate) async fn finish<S: KeepAlive>(
        &mut self,
        source: &mut Arriving<'_, S>,
    ) -> Result<(), WorkError> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let shutdown = self.destination.shutdown.clone();
        let inserting = self.destination.throttle.inserting();
        let waiting = async {
            Ok(tokio::select! {
                answer = within(LONGEST_STALL, open.insert.finish()) => Some(answer),
                () = asked_to_end(&shutdown) => None,
            })
        };
        let answered = source.meanwhile(waiting).await;
        drop(inserting);
        match answered {
            Ok(Some(Ok(()))) => {
                self.answered += 1;
                self.acknowledged += open.insert.rows();
                self.destination.limits.part.was_taken(open.bytes);
                Ok(())
            }
            Ok(Some(Err(error))) => {
                self.open = Some(open);
                Err(self.failed(error))
            }
            Ok(None) => {
                open.insert.abort().await;
                Err(WorkError::Interrupted)
            }
            Err(of_source) => {
                self.open = Some(open);
                Err(of_source)
            }
        }
    }

    /// Ends the current insert after the attempt failed, allowing some time for its answer.
    pub(crate) async fn abandon(&mut self, error: &WorkError) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let shutdown = &self.destination.shutdown;
        // If the response was damaged, earlier blocks may be wrong too.
        if !matches!(error, WorkError::Native(_)) {
            tokio::select! {
                answer = tokio::time::timeout(FAILED_INSERT, open.insert.finish()) => {
                    match answer {
                        Ok(Ok(())) => {
                            self.answered += 1;
                            self.acknowledged += open.insert.rows();
                        }
                        Ok(Err(RequestError::NotConnected(_))) => self.unreached += 1,
                        _ => {}
                    }
                }
                () = asked_to_end(shutdown) => {}
            }
        }
        // Ignore the result: the item is not done either way.
        open.insert.abort().await;
    }

    /// Classifies a failed insert.
    fn failed(&mut self, error: RequestError) -> WorkError {
        let Some(open) = self.open.take() else {
            return error.into();
        };
        if matches!(error, RequestError::NotConnected(_)) {
            self.unreached += 1;
        }
        let limits = &self.destination.limits;
        if error.is_lack_of_memory() {
            limits.part.was_too_large(open.part_bytes.min(open.bytes));
        } else if error.is_too_large() {
            limits.body_was_too_large(open.body_bytes);
        }
        WorkError::InsertFailed {
            table: self.destination.table.clone(),
            is_single_block: !open.is_divisible(&error),
            error,
        }
    }
}

impl Destination {
    /// Counts a finished item.
    pub(super) fn count(&self, counts: SegmentCounts, is_segment: bool) {
        let left_out =
            counts.left_out.live + counts.left_out.already_there + counts.left_out.live_path;
        let processed = counts.observations + left_out;
        self.telemetry.done(
            self.source,
            processed,
            counts.inserted,
            counts.without_trace,
        );
        if is_segment {
            self.telemetry.segment_done();
        }
    }
}

fn begin(
    connection: &Connection,
    destination: &Destination,
    name: &str,
    inserts: &mut u32,
) -> Result<Open, RequestError> {
    let part_bytes = destination.limits.part.bytes();
    let request = InsertRequest {
        sql: destination.insert_sql.clone(),
        settings: destination.part_settings(part_bytes),
        query_id: format!("{}-{name}-{inserts}", destination.query_prefix),
        has_views: destination.has_views,
    };
    let insert = connection.begin_insert(&request)?;
    *inserts += 1;
    Ok(Open {
        insert,
        begun: Instant::now(),
        fed: Instant::now(),
        blocks: 0,
        body_bytes: 0,
        bytes: 0,
        largest_block: 0,
        part_bytes,
    })
}

/// Waits for a signal, and then for the time an insert may still take.
async fn asked_to_end(shutdown: &Shutdown) {
    shutdown.requested().await;
    tokio::time::sleep(LAST_INSERT).await;
}

async fn within(
    limit: Duration,
    work: impl Future<Output = Result<(), RequestError>>,
) -> Result<(), RequestError> {
    let timed_out = |_| {
        let doing = "accept an insert's rows";
        Err(RequestError::TimedOut { doing, limit })
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(timed_out)
}

fn compression_failed(error: std::io::Error) -> WorkError {
    RequestError::Unexpected(format!("cannot compress a block: {error}")).into()
}
