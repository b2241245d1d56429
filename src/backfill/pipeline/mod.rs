//! Segments, several at once: read → enrich → insert, bounded.
//!
//! Each segment holds a block that is arriving or being enriched, a batch that is
//! being filled and one that is being sent, and all of them together at most its
//! share of the memory: a block of unusual size waits until the batches are sent. A
//! segment is done when the insert of its last batch is acknowledged; if anything
//! of it fails in a way that may pass, it is read again, and what the target has of it by then
//! is not sent again.

pub(crate) mod batch;
pub(crate) mod send;

use std::sync::Arc;

use tokio::task::JoinSet;

use bytes::Bytes;
use tokio::task::block_in_place;

use self::batch::{Batch, BatchMaker};
use self::send::{Arriving, Destination, KeepAlive, Sender};
use super::error::WorkError;
use super::guard::Guard;
use super::guard::recovery::Recovery;
use super::remote_lookup::deferred_rows::{DeferredReader, DeferredRows, DeferredWriter};
use super::wanted_rows::WantedRows;
use crate::clickhouse::{NativeStream, RequestError};
use crate::enrich::{EnrichError, EnrichedBlock, Enricher, SetAside, Unknown};
use crate::error::{Error, Kind};
use crate::inspect::segments::Segment;
use crate::inspect::statements::{SegmentQuery, of_segment};
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, BlockReader, NativeError};
use crate::progress::Phase;
use crate::state::counts::{DeferredCounts, LeftOut, SegmentCounts};

/// What all segments share.
pub(crate) struct Pipeline {
    /// Leaves out rows that are not to be written.
    pub guard: Guard,
    /// Finds out what an attempt has written that failed.
    pub recovery: Recovery,
    /// Makes events of observations.
    pub enricher: Enricher,
    /// The query of one segment.
    pub query: SegmentQuery,
    /// Which rows of a segment are read, if not all.
    pub wanted: Option<WantedRows>,
    /// Where the events go.
    pub destination: Arc<Destination>,
    /// How much memory everything may take.
    pub budget: Budget,
    /// Buffers of blocks that arrive.
    pub pool: BufferPool,
    /// Makes batches.
    pub batches: BatchMaker,
    /// Where observations wait whose trace is not known.
    pub deferred: DeferredRows,
    /// Whether they do, when they come from the server.
    pub unknown: Unknown,
    /// Most rows in one insert.
    pub batch_rows: usize,
    /// Most rows in one block that is read.
    pub block_rows: usize,
    /// Segments at once.
    pub concurrency: usize,
}

/// An item of work.
#[derive(Debug, Clone)]
pub(crate) enum WorkItem {
    /// The observations of a segment.
    Segment(Segment),
    /// What a segment has left for later.
    Deferred {
        /// The segment.
        segment: Segment,
        /// How much that is.
        counts: DeferredCounts,
    },
}

impl WorkItem {
    /// The segment that it is, or is a part of.
    pub(crate) fn segment(&self) -> &Segment {
        match self {
            WorkItem::Segment(segment) | WorkItem::Deferred { segment, .. } => segment,
        }
    }

    fn number(&self) -> u32 {
        self.segment().number
    }

    fn rows(&self) -> u64 {
        match self {
            WorkItem::Segment(segment) => segment.rows,
            WorkItem::Deferred { counts, .. } => counts.rows,
        }
    }

    fn name(&self) -> String {
        let number = self.number();
        match self {
            WorkItem::Segment(_) => format!("segment {number}"),
            WorkItem::Deferred { .. } => format!("what segment {number} left for later"),
        }
    }
}

/// An item of work that is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// Number of its segment.
    pub number: u32,
    /// What became events.
    pub counts: SegmentCounts,
    /// What is left for later.
    pub deferred: DeferredCounts,
    /// Whether an attempt failed that had sent something.
    pub was_repeated: bool,
}

/// Writes down what is begun and what is done, one at a time.
pub(crate) trait Records {
    /// Before anything of an item is sent.
    ///
    /// # Errors
    /// [`Error`] where it cannot be written down; then the item is not begun.
    fn begin(&mut self, item: &WorkItem) -> Result<(), Error>;

    /// When all of an item is acknowledged. Says whether to begin another one.
    ///
    /// # Errors
    /// [`Error`] where it cannot be written down; then the item counts as begun.
    fn done(&mut self, done: Done) -> Result<bool, Error>;
}

/// Works through all items; the largest first, so that none holds the rest up.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) with the item and the server's words;
/// [`Kind::Interrupted`](crate::error::Kind) where the run was asked to end. Pieces that were
/// done before stay done.
pub(crate) async fn run(
    pipeline: Arc<Pipeline>,
    mut items: Vec<WorkItem>,
    phase: Arc<Phase>,
    records: &mut impl Records,
) -> Result<(), Error> {
    items.sort_by_key(WorkItem::rows);
    let mut running = JoinSet::new();
    let mut first_error = None;
    let mut is_enough = false;
    let shutdown = &pipeline.destination.shutdown;
    loop {
        let goes_on = first_error.is_none() && !is_enough && shutdown.signal().is_none();
        while goes_on
            && first_error.is_none()
            && running.len() < pipeline.concurrency
            && let Some(item) = items.pop()
        {
            if let Err(error) = records.begin(&item) {
                running.abort_all();
                first_error = Some(error);
                break;
            }
            let work = ItemWork {
                pipeline: Arc::clone(&pipeline),
                phase: Arc::clone(&phase),
                item,
            };
            running.spawn(work.run());
        }
        let outcome = match running.join_next().await {
            None => break,
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Error::caused("a segment ended unexpectedly", error)),
        };
        match outcome.and_then(|done| records.done(done)) {
            Ok(another) => is_enough |= !another,
            Err(error) => {
                // The others are not waited for: they may take long, or fail alike.
                running.abort_all();
                first_error.get_or_insert(error);
            }
        }
    }
    match (first_error, shutdown.signal()) {
        // What went wrong is what the operator must know, also where a signal came then.
        (Some(error), _) => Err(error),
        (None, Some(signal)) => Err(Error::interrupted(signal)),
        (None, None) => Ok(()),
    }
}

/// How often in a row a batch may be made smaller without counting as a try: from the largest to
/// a few kilobytes. Other segments may make the limit larger meanwhile, so it must have an end.
const MOST_DIVISIONS: u32 = 16;

/// One item on its way.
struct ItemWork {
    pipeline: Arc<Pipeline>,
    phase: Arc<Phase>,
    item: WorkItem,
}

/// How far one attempt at an item got: for the progress bar, and for what is done about its end.
#[derive(Default)]
struct Attempt {
    number: u32,
    shown_rows: u64,
    /// What the query ids of its inserts begin with, if it has sent any.
    sent_as: Option<String>,
    /// Rows that the server has acknowledged, or had from an attempt before.
    written: u64,
}

impl ItemWork {
    async fn run(self) -> Result<Done, Error> {
        let name = self.item.name();
        let mut attempts = self.pipeline.destination.retries.attempts();
        let mut block_rows = self.pipeline.block_rows;
        let mut was_repeated = false;
        let mut divisions = 0;
        let mut furthest = 0;
        for number in 0.. {
            let mut attempt = Attempt {
                number,
                ..Attempt::default()
            };
            let error = match self.try_once(block_rows, &mut attempt).await {
                Ok(done) => {
                    self.phase
                        .finish_piece(attempt.shown_rows, self.item.rows());
                    return Ok(Done {
                        was_repeated,
                        ..done
                    });
                }
                Err(error) => error,
            };
            self.phase.go_back(attempt.shown_rows);
            if error == WorkError::Interrupted {
                let signal = self.pipeline.destination.shutdown.signal();
                return Err(Error::interrupted(signal.unwrap_or_default()));
            }
            let is_smaller_next = matches!(
                &error,
                WorkError::InsertFailed { error, is_single_block: false } if error.is_too_large()
            );
            let got_further = attempt.written > furthest;
            furthest = furthest.max(attempt.written);
            divisions = match got_further {
                false => divisions + u32::from(is_smaller_next),
                true => 0,
            };
            let sends_less = is_smaller_next && divisions <= MOST_DIVISIONS;
            if got_further || sends_less {
                // What is met now is something else. It must be further than any attempt before:
                // where a backfill's rows are written again, each begins with the same ones.
                attempts = self.pipeline.destination.retries.attempts();
            }
            if let Some(fewer) = error.smaller_blocks(block_rows) {
                // Rows are larger than expected here, and usual elsewhere.
                block_rows = fewer;
            } else {
                let what = format!("{name}: {error}");
                if !attempts.again(error.hope(), what).await {
                    let failed = format!("{name} could not be done{}", attempts.in_words());
                    return Err(Error::caused(failed, &error).with(error.advice()));
                }
            }
            if let Some(prefix) = attempt.sent_as {
                was_repeated = true;
                let recovery = &self.pipeline.recovery;
                let seen = recovery.after_attempt(self.item.segment(), &prefix).await;
                seen.map_err(|error| match error.kind() {
                    Kind::Failed => error.during(format_args!("{name} could not be done")),
                    _ => error,
                })?;
            }
        }
        Err(Error::failed(format!("{name} was never begun")))
    }

    async fn try_once(&self, block_rows: usize, attempt: &mut Attempt) -> Result<Done, WorkError> {
        let number = self.item.number();
        let kind = match &self.item {
            WorkItem::Segment(_) => "",
            WorkItem::Deferred { .. } => "deferred-",
        };
        let name = format!("{kind}{number}-{}", attempt.number);
        let sender = Sender::new(&self.pipeline.destination, self.item.name(), name);
        let mut work = self.begin(block_rows, sender)?;
        let mut outcome = work.read_and_send(attempt).await;
        match &outcome {
            Ok(()) => outcome = work.sender.finish().await,
            Err(error) => work.sender.abandon(error).await,
        }
        attempt.written = work.sender.acknowledged() + work.left_out.written_before;
        attempt.sent_as = work.sender.has_sent().then(|| work.sender.query_prefix());
        outcome?;
        let left_out = work.left_out;
        let mut counts = work.sender.counts();
        counts.superseded = work.superseded;
        counts.left_out = left_out;
        counts.observations += left_out.written_before;
        counts.inserted += left_out.written_before;
        let deferred = block_in_place(|| work.deferred.finish())?;
        Ok(Done {
            number,
            counts,
            deferred,
            was_repeated: false,
        })
    }

    fn begin(&self, block_rows: usize, sender: Sender) -> Result<Try<'_>, WorkError> {
        let pipeline = &*self.pipeline;
        let (rows, unknown) = match &self.item {
            WorkItem::Segment(segment) => {
                let preferred_bytes = pipeline.budget.preferred_block_bytes;
                let sql = match &pipeline.wanted {
                    Some(wanted) => wanted.sql(&pipeline.query, segment)?,
                    None => pipeline.query.sql(segment),
                };
                let connection = &pipeline.destination.connection;
                let stream = connection.send(&of_segment(sql, block_rows, preferred_bytes))?;
                (Rows::Server(Box::new(stream)), pipeline.unknown)
            }
            // By now there is nobody else to ask.
            WorkItem::Deferred { segment, counts } => {
                let file = pipeline.deferred.reader(segment.number, counts.bytes)?;
                (Rows::File(file), Unknown::WithoutTrace)
            }
        };
        Ok(Try {
            pipeline,
            phase: &self.phase,
            rows,
            unknown,
            deferred: pipeline.deferred.writer(self.item.number()),
            reader: BlockReader::new(pipeline.budget.max_block_bytes, &pipeline.pool),
            waiting: Vec::new(),
            waiting_bytes: 0,
            superseded: 0,
            left_out: LeftOut::default(),
            batch: pipeline.batches.begin(),
            sender,
        })
    }
}

/// Where the blocks of an item come from.
enum Rows {
    Server(Box<NativeStream>),
    File(DeferredReader),
}

impl KeepAlive for Rows {
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, WorkError> {
        match self {
            Rows::Server(stream) => Ok(stream.next_chunk().await?),
            Rows::File(file) => block_in_place(|| file.next_chunk()),
        }
    }
}

/// One try at an item: what it holds, which is never more than its share.
struct Try<'a> {
    pipeline: &'a Pipeline,
    phase: &'a Phase,
    rows: Rows,
    unknown: Unknown,
    deferred: DeferredWriter,
    reader: BlockReader,
    /// Blocks that have come and are not enriched yet.
    waiting: Vec<Block>,
    /// Bytes of memory that blocks hold that are not enriched yet.
    waiting_bytes: usize,
    /// Rows that became nothing.
    superseded: u64,
    /// Rows that the guard has left out.
    left_out: LeftOut,
    batch: Batch,
    sender: Sender,
}

impl Try<'_> {
    async fn read_and_send(&mut self, attempt: &mut Attempt) -> Result<(), WorkError> {
        loop {
            while let Some(block) = self.reader.next_block()? {
                let rows = block.rows as u64;
                let (block, left_out) = block_in_place(|| self.pipeline.guard.take(block))?;
                self.left_out += left_out;
                if let Some(block) = block {
                    self.waiting_bytes += block.held_bytes;
                    self.waiting.push(block);
                }
                if self.is_enough_to_look_up() {
                    self.enrich_waiting().await?;
                }
                attempt.shown_rows += rows;
                self.phase.advance(rows);
            }
            let chunk = tokio::select! {
                chunk = self.rows.next_chunk() => chunk?,
                _ = self.pipeline.destination.shutdown.requested() => return Err(WorkError::Interrupted),
            };
            match chunk {
                Some(chunk) => self.take(&chunk).await?,
                None => break,
            }
        }
        self.reader.finish()?;
        self.enrich_waiting().await?;
        self.send_batch().await
    }

    /// Whether the blocks that wait are looked up now. More rows than a batch may have would stand
    /// enriched for several inserts, while their traces may change.
    fn is_enough_to_look_up(&self) -> bool {
        let rows: usize = self.waiting.iter().map(|block| block.rows).sum();
        self.waiting_bytes >= self.pipeline.budget.look_up_bytes || rows >= self.pipeline.batch_rows
    }

    /// Bytes of the segment's share that nothing takes, were the reader to hold so many.
    fn room(&self, reader_bytes: usize) -> usize {
        let batches = self.batch.held_bytes() + self.sender.held_bytes();
        let held = batches + self.waiting_bytes + reader_bytes;
        self.pipeline.budget.segment_bytes.saturating_sub(held)
    }

    /// Waits until less is held. False if only what is arriving is left.
    async fn make_room(&mut self) -> Result<bool, WorkError> {
        if self.sender.held_bytes() == 0 {
            if self.batch.rows() == 0 {
                return Ok(false);
            }
            self.send_batch().await?;
        }
        self.settle().await?;
        Ok(true)
    }

    async fn take(&mut self, chunk: &Bytes) -> Result<(), WorkError> {
        while self.room(self.reader.held_with(chunk.len())) == 0 {
            if self.make_room().await? {
                continue;
            }
            if self.waiting.is_empty() {
                break;
            }
            self.enrich_waiting().await?;
        }
        self.reader.push(chunk);
        Ok(())
    }

    /// Enriches the blocks that wait: all at once, or fewer where the room that there
    /// can be is not enough.
    async fn enrich_waiting(&mut self) -> Result<(), WorkError> {
        let mut groups = vec![std::mem::take(&mut self.waiting)];
        while let Some(mut group) = groups.pop() {
            let room = self.room(self.reader.held_with(0));
            let enricher = &self.pipeline.enricher;
            let mut set_aside = SetAside::default();
            self.waiting_bytes -= held_bytes(&group);
            let events = block_in_place(|| {
                let events = enricher.enrich(&mut group, self.unknown, &mut set_aside, room);
                for block in set_aside.deferred.drain(..) {
                    self.deferred.push(&block)?;
                }
                Ok::<_, WorkError>(events)
            })?;
            self.waiting_bytes += held_bytes(&group);
            self.superseded += set_aside.superseded as u64;
            match events {
                Ok(events) => {
                    self.waiting_bytes -= held_bytes(&group);
                    drop(group);
                    for block in events {
                        self.add(block).await?;
                    }
                }
                Err(EnrichError::Native(NativeError::TooLarge { .. }))
                    if self.make_room().await? =>
                {
                    groups.push(group);
                }
                Err(EnrichError::Native(NativeError::TooLarge { .. })) if group.len() > 1 => {
                    let second = group.split_off(group.len() / 2);
                    groups.extend([second, group]);
                }
                Err(EnrichError::Native(NativeError::TooLarge { .. })) if group[0].rows > 1 => {
                    let halves = self.halve(&group[0])?;
                    self.waiting_bytes += held_bytes(&halves);
                    self.waiting_bytes -= held_bytes(&group);
                    drop(group);
                    groups.extend(halves.into_iter().rev().map(|half| vec![half]));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A block as two: what its rows get from their traces is too much for it as a whole.
    fn halve(&self, block: &Block) -> Result<Vec<Block>, WorkError> {
        let middle = block.rows / 2;
        [0..middle, middle..block.rows]
            .into_iter()
            .map(|rows| Ok(block.take_rows(&[rows], self.pipeline.pool.take())?))
            .collect()
    }

    /// Adds a block to the batch, or to the next one.
    async fn add(&mut self, block: EnrichedBlock) -> Result<(), WorkError> {
        if self.is_full(&block) {
            self.send_batch().await?;
        }
        block_in_place(|| self.batch.push(block)).map_err(compression_failed)
    }

    /// Whether the batch must be sent before a block is added.
    fn is_full(&self, block: &EnrichedBlock) -> bool {
        let pipeline = self.pipeline;
        self.batch.rows() > 0
            && (self.batch.rows() + block.rows > pipeline.batch_rows
                || self.batch.held_bytes() + block.held_bytes > pipeline.budget.batch_bytes
                || self.batch.bytes() + block.bytes() > pipeline.destination.limit.bytes())
    }

    async fn send_batch(&mut self) -> Result<(), WorkError> {
        self.settle().await?;
        let full = std::mem::replace(&mut self.batch, self.pipeline.batches.begin());
        self.sender.send(full);
        Ok(())
    }

    /// Waits for the batch in flight, sipping meanwhile.
    async fn settle(&mut self) -> Result<(), WorkError> {
        let room = self.room(self.reader.held_with(0));
        let source = Arriving {
            max_buffered_bytes: self.reader.buffered_bytes() + room,
            rows: &mut self.rows,
            reader: &mut self.reader,
        };
        self.sender.settle(Some(source)).await
    }
}

fn held_bytes(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| block.held_bytes).sum()
}

fn compression_failed(error: std::io::Error) -> WorkError {
    WorkError::Request(RequestError::Unexpected(format!(
        "a batch cannot be compressed: {error}"
    )))
}
