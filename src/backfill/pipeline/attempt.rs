//! One attempt at an item: read → filter → enrich → send, within the segment's share of memory.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::keep_alive::{Arriving, KeepAlive};
use super::send::Sender;
use super::work::{Done, Pipeline, WorkItem};
use crate::backfill::error::WorkError;
use crate::backfill::pushdown::Rest;
use crate::backfill::remote_lookup::deferred_rows::{DeferredReader, DeferredWriter};
use crate::clickhouse::NativeStream;
use crate::enrich::{EnrichError, EnrichedBlock, SetAside, Unknown};
use crate::inspect::statements::of_segment;
use crate::native::{Block, BlockReader, NativeError, held_bytes};
use crate::progress::Phase;
use crate::state::counts::LeftOut;

/// How far an attempt got.
#[derive(Default)]
pub(super) struct Reached {
    /// Rows already counted by the progress bar.
    pub shown_rows: u64,
    /// Whether it has sent anything.
    pub has_sent: bool,
    /// Query id prefix of its inserts, if a server may still be running one.
    pub in_doubt: Option<String>,
    /// Rows acknowledged by the server, in this or an earlier attempt.
    pub written: u64,
}

/// The source of an item's blocks.
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

/// An attempt at an item, holding at most its share of memory.
pub(super) struct Attempt<'a> {
    pipeline: &'a Pipeline,
    phase: &'a Phase,
    /// Number of the segment.
    number: u32,
    rows: Rows,
    unknown: Unknown,
    deferred: DeferredWriter,
    /// Bytes read ahead while waiting; consumed before the next read.
    sipped: VecDeque<Bytes>,
    /// Time of the last read.
    last_read: Instant,
    reader: BlockReader,
    /// Blocks waiting to be enriched.
    waiting: Vec<Block>,
    /// Memory held by blocks waiting to be enriched, in bytes.
    waiting_bytes: usize,
    /// Memory held by enriched blocks not yet given to the sender, in bytes.
    enriched_bytes: usize,
    /// Rows dropped as superseded.
    superseded: u64,
    /// Rows excluded by the guard.
    left_out: LeftOut,
    sender: Sender,
}

impl<'a> Attempt<'a> {
    /// Requests an item's rows in blocks of `block_rows`; of a segment only the rest, if there is one.
    ///
    /// # Errors
    /// [`WorkError`] if the rows cannot be requested.
    pub(super) fn begin(
        pipeline: &'a Pipeline,
        phase: &'a Phase,
        item: &WorkItem,
        attempt_number: u32,
        block_rows: usize,
        rest: Option<&Rest>,
    ) -> Result<Self, WorkError> {
        let number = item.number();
        let (rows, unknown, kind) = match item {
            WorkItem::Segment(segment) => {
                let throttle = &pipeline.destination.throttle;
                let block_rows = throttle.block_rows(block_rows);
                let preferred_bytes = throttle.block_bytes(pipeline.budget.preferred_block_bytes);
                let query = &pipeline.query;
                let sql = match (&pipeline.wanted, rest) {
                    (Some(wanted), _) => wanted.sql(query, segment)?,
                    (None, Some(rest)) => {
                        query.sql_of_rows(segment, &rest.prewhere, &rest.condition)
                    }
                    (None, None) => query.sql(segment),
                };
                let connection = pipeline.destination.connection_of(number);
                let stream = connection.send(&of_segment(sql, block_rows, preferred_bytes))?;
                let kind = if rest.is_some() { "rest-" } else { "" };
                (Rows::Server(Box::new(stream)), pipeline.unknown, kind)
            }
            // There is nowhere else to look.
            WorkItem::Deferred { segment, counts } => {
                let file = pipeline.deferred.reader(segment.number, counts.bytes)?;
                (Rows::File(file), Unknown::WithoutTrace, "deferred-")
            }
        };
        Ok(Self {
            pipeline,
            phase,
            number,
            rows,
            unknown,
            deferred: pipeline.deferred.writer(number),
            sipped: VecDeque::new(),
            last_read: Instant::now(),
            reader: BlockReader::new(pipeline.budget.max_block_bytes, &pipeline.pool),
            waiting: Vec::new(),
            waiting_bytes: 0,
            enriched_bytes: 0,
            superseded: 0,
            left_out: LeftOut::default(),
            sender: Sender::new(
                &pipeline.destination,
                number,
                format!("{kind}{number}-{attempt_number}"),
            ),
        })
    }

    /// Turns all rows into events and writes them.
    ///
    /// # Errors
    /// [`WorkError`] if reading, enriching or writing fails, or on a signal. Some of the rows may
    /// then be in the target.
    pub(super) async fn run(mut self, reached: &mut Reached) -> Result<Done, WorkError> {
        let outcome = self.read_and_send(reached).await;
        if let Err(error) = &outcome {
            self.sender.abandon(error).await;
        }
        reached.written = self.sender.acknowledged() + self.left_out.written_before;
        reached.has_sent = self.sender.has_sent();
        reached.in_doubt = self.sender.in_doubt();
        outcome?;
        let left_out = self.left_out;
        let mut counts = self.sender.counts();
        counts.superseded = self.superseded;
        counts.left_out = left_out;
        counts.observations += left_out.written_before;
        counts.inserted += left_out.written_before;
        let deferred = block_in_place(|| self.deferred.finish())?;
        Ok(Done {
            number: self.number,
            counts,
            deferred,
            was_repeated: false,
            is_segment: matches!(self.rows, Rows::Server(_)),
        })
    }

    async fn read_and_send(&mut self, reached: &mut Reached) -> Result<(), WorkError> {
        loop {
            while let Some(block) = self.reader.next_block()? {
                let rows = block.rows as u64;
                let (block, left_out) = block_in_place(|| self.pipeline.guard.take(block))?;
                self.left_out += left_out;
                if let Some(block) = block {
                    self.waiting_bytes += block.held_bytes;
                    self.waiting.push(block);
                }
                if self.waiting_bytes >= self.pipeline.budget.look_up_bytes {
                    self.enrich_waiting().await?;
                }
                reached.shown_rows += rows;
                self.phase.advance(rows);
            }
            if let Some(chunk) = self.sipped.pop_front() {
                self.take(&chunk).await?;
                continue;
            }
            let silent_until = self.sender.silent_until();
            let chunk = tokio::select! {
                chunk = self.rows.next_chunk() => chunk?,
                _ = self.pipeline.destination.shutdown.requested() => return Err(WorkError::Interrupted),
                () = until(silent_until) => {
                    self.end_silence().await?;
                    continue;
                }
            };
            self.last_read = Instant::now();
            match chunk {
                Some(chunk) => self.take(&chunk).await?,
                None => break,
            }
        }
        self.reader.finish()?;
        self.enrich_waiting().await?;
        self.finish_insert().await
    }

    /// Sends what is ready to an insert that waits for rows, or ends it.
    async fn end_silence(&mut self) -> Result<(), WorkError> {
        match self.waiting.is_empty() {
            false => self.enrich_waiting().await,
            true => self.finish_insert().await,
        }
    }

    async fn finish_insert(&mut self) -> Result<(), WorkError> {
        self.with_sender(async |sender, mut source| sender.finish(&mut source).await)
            .await
    }

    /// Runs a slow operation of the sender, reading ahead meanwhile.
    async fn with_sender(
        &mut self,
        work: impl AsyncFnOnce(&mut Sender, Arriving<'_, Rows>) -> Result<(), WorkError>,
    ) -> Result<(), WorkError> {
        let room = self.balance(self.reader.held_with(0));
        let source = Arriving {
            rows: &mut self.rows,
            sipped: &mut self.sipped,
            room,
            last_read: &mut self.last_read,
        };
        work(&mut self.sender, source).await
    }

    /// Free bytes of the segment's share, if the reader held `reader_bytes`.
    fn room(&self, reader_bytes: usize) -> usize {
        usize::try_from(self.balance(reader_bytes)).unwrap_or(0)
    }

    /// The same, negative if more than the share is held.
    fn balance(&self, reader_bytes: usize) -> isize {
        let sipped: usize = self.sipped.iter().map(Bytes::len).sum();
        let blocks = self.sender.held_bytes() + self.enriched_bytes + self.waiting_bytes;
        let share = isize::try_from(self.pipeline.budget.segment_bytes).unwrap_or(isize::MAX);
        share.saturating_sub_unsigned(blocks + sipped + reader_bytes)
    }

    /// Waits until everything sendable is sent. Returns false if there was nothing.
    async fn make_room(&mut self) -> Result<bool, WorkError> {
        if self.sender.held_bytes() == 0 {
            return Ok(false);
        }
        self.with_sender(async |sender, mut source| sender.wait_for_room(0, &mut source).await)
            .await?;
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

    /// Enriches the waiting blocks, all at once or as many as fit.
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
                    self.send(events).await?;
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

    /// Halves a block whose trace attributes do not fit in memory at once.
    fn halve(&self, block: &Block) -> Result<Vec<Block>, WorkError> {
        let middle = block.rows / 2;
        [0..middle, middle..block.rows]
            .into_iter()
            .map(|rows| Ok(block.take_rows(&[rows], self.pipeline.pool.take())?))
            .collect()
    }

    async fn send(&mut self, events: Vec<EnrichedBlock>) -> Result<(), WorkError> {
        self.enriched_bytes = events.iter().map(|block| block.held_bytes).sum();
        for block in events {
            let held_bytes = block.held_bytes;
            self.with_sender(async |sender, source| sender.send(block, source).await)
                .await?;
            self.enriched_bytes -= held_bytes;
        }
        Ok(())
    }
}

/// Waits until `then`, or forever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
