//! The second phase: observations become events, then traces root spans.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::guard::Guard;
use super::job::Job;
use super::pipeline::batch::{BatchLimit, BatchMaker};
use super::pipeline::send::Destination;
use super::pipeline::{self, Done, Journal, Pipeline, WorkItem};
use super::remote_lookup::deferred_rows::DeferredRows;
use super::wanted_rows::WantedRows;
use crate::clickhouse::Compression;
use crate::enrich::{Enricher, Unknown};
use crate::error::Error;
use crate::inspect::segments;
use crate::mapping::Source;
use crate::memory;
use crate::memory::numbers::in_memory;
use crate::progress::Phase;
use crate::trace_store::TraceStore;

/// When observations of so many bytes wait for their traces, these are looked for before
/// more segments are begun.
const LATE_BYTES: u64 = 1 << 30;

impl Job {
    /// Makes events of the rows of a source.
    pub(super) async fn stream(
        &mut self,
        source: Source,
        store: &Arc<TraceStore>,
        destination: &Arc<Destination>,
    ) -> Result<(), Error> {
        let rows = |source| self.checkpoint.segments_of(source).map(|s| s.rows).sum();
        let planned: u64 = rows(source);
        let before = match source {
            Source::Observations => 0,
            Source::Traces => rows(Source::Observations),
        };
        let whole = Source::BOTH.map(rows).iter().sum();
        let left = self.checkpoint.remaining(source);
        let left: u64 = left.iter().map(|segment| segment.rows).sum();
        let name = match (source, self.options.dry_run) {
            (Source::Observations, true) => "observations read",
            (Source::Observations, false) => "observations processed",
            (Source::Traces, true) => "root spans read",
            (Source::Traces, false) => "root spans processed",
        };
        let phase = Phase::begin(&self.display, name, planned, planned - left);
        let phase = Arc::new(phase.leading(before, whole));
        let pipeline = Arc::new(self.pipeline(source, store, destination)?);
        let changes = Arc::clone(&self.changes);
        let streaming = async {
            let mut outcome = Ok(());
            while outcome.is_ok() && !self.is_streamed(source) {
                outcome = self.stream_segments(source, &pipeline, &phase).await;
                if outcome.is_ok() {
                    outcome = self.stream_deferred(source, &pipeline, store).await;
                }
            }
            outcome
        };
        let outcome = match changes.get() {
            Some(changes) => tokio::select! {
                outcome = streaming => outcome,
                error = changes.watch() => Err(error),
            },
            None => streaming.await,
        };
        phase.finish();
        outcome
    }

    fn is_streamed(&self, source: Source) -> bool {
        self.checkpoint.remaining(source).is_empty() && self.checkpoint.deferred.is_empty()
    }

    /// Works on the segments that are left, until too much waits for its traces.
    async fn stream_segments(
        &mut self,
        source: Source,
        pipeline: &Arc<Pipeline>,
        phase: &Arc<Phase>,
    ) -> Result<(), Error> {
        let pieces = self.checkpoint.remaining(source);
        let pieces = pieces.into_iter().map(WorkItem::Segment);
        let pieces = pieces.collect();
        let mut journal = SegmentJournal(self);
        let (pipeline, phase) = (Arc::clone(pipeline), Arc::clone(phase));
        pipeline::run(pipeline, pieces, phase, &mut journal).await
    }

    /// Looks for the traces of the observations that wait, and makes events of them.
    async fn stream_deferred(
        &mut self,
        source: Source,
        pipeline: &Arc<Pipeline>,
        store: &Arc<TraceStore>,
    ) -> Result<(), Error> {
        if self.checkpoint.deferred.is_empty() {
            return Ok(());
        }
        let rows = self
            .checkpoint
            .deferred
            .values()
            .map(|deferred| deferred.rows)
            .sum();
        let name = "with traces elsewhere";
        let phase = Arc::new(Phase::begin(&self.display, name, rows, 0));
        self.look_elsewhere(source, pipeline, store).await?;
        let deferred = self.checkpoint.deferred.iter();
        let pieces = deferred.filter_map(|(&number, &counts)| {
            let segment = self.checkpoint.segment(number)?.clone();
            Some(WorkItem::Deferred { segment, counts })
        });
        let pieces: Vec<WorkItem> = pieces.collect();
        let mut journal = LateJournal {
            job: self,
            deferred: pipeline.deferred.clone(),
        };
        let (pipeline, shown) = (Arc::clone(pipeline), Arc::clone(&phase));
        let outcome = pipeline::run(pipeline, pieces, shown, &mut journal).await;
        phase.finish();
        outcome
    }

    /// Makes the plan, unless it is in the checkpoint.
    pub(super) async fn plan(&mut self) -> Result<(), Error> {
        if self.checkpoint.segments.is_some() {
            return Ok(());
        }
        let sources = self.options.sources().into_iter();
        let partitions: Vec<_> = sources
            .map(|source| self.inspected.partition(source))
            .collect();
        let plan = segments::make(&self.connection, &partitions, self.options.segment_rows);
        let segments = tokio::select! {
            segments = plan => segments.map_err(|error| {
                Error::failed("the partition cannot be divided into segments", error)
            })?,
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        };
        self.checkpoint.segments = Some(segments);
        Ok(())
    }

    pub(super) fn destination(&self, source: Source) -> Destination {
        let target = &self.inspected.target;
        Destination {
            connection: self.connection.clone(),
            insert_sql: format!(
                "INSERT INTO {} ({}) FORMAT Native",
                target.qualified_name(),
                self.inspected.mapping_of(source).insert_columns()
            ),
            has_views: target.has_views,
            query_prefix: format!("{}{:x}", self.query_prefix(), fastrand::u64(..)),
            dry_run: self.options.dry_run,
            limit: BatchLimit::new(match self.connection.compression() {
                Compression::None => self.options.budget.batch_bytes,
                // They take less memory than they have bytes.
                Compression::Lz4 => in_memory(memory::LARGEST_BATCH),
            }),
            retries: self.retries.clone(),
            shutdown: self.shutdown.clone(),
            insert_nanoseconds: AtomicU64::new(0),
        }
    }

    fn pipeline(
        &self,
        source: Source,
        store: &Arc<TraceStore>,
        destination: &Arc<Destination>,
    ) -> Result<Pipeline, Error> {
        let inspected = &self.inspected;
        let mapping = Arc::new(inspected.mapping_of(source).clone());
        let budget = self.options.budget;
        let until = self.checkpoint.target.as_ref().and_then(|t| t.until);
        let guard = Guard::new(&mapping, Arc::clone(store), until).map_err(Error::Configuration)?;
        Ok(Pipeline {
            guard,
            recovery: self.recovery(store),
            enricher: Enricher::new(mapping, Arc::clone(store), budget.pool()),
            query: inspected.segment_query(source),
            wanted: self.is_repair.then(|| {
                let partition = inspected.partition(source);
                WantedRows {
                    store: Arc::clone(store),
                    table: partition.table.qualified_name(),
                    partition_id: partition.id.to_owned(),
                }
            }),
            destination: Arc::clone(destination),
            budget,
            pool: self.pool.clone(),
            batches: BatchMaker {
                compression: self.connection.compression(),
                pool: budget.pool(),
            },
            deferred: DeferredRows::new(self.state.deferred_rows()),
            unknown: match (source, self.options.remote_lookup) {
                (Source::Observations, false) => Unknown::WithoutTrace,
                // What is missing arrived after the traces were loaded.
                (Source::Traces, _) | (_, true) => Unknown::Deferred,
            },
            batch_rows: self.options.batch_rows,
            // A block is never divided, so it must not be larger than a batch.
            block_rows: self.options.block_rows.min(self.options.batch_rows),
            concurrency: self.options.concurrency,
        })
    }
}

/// What of a source is begun and done. What is not written down will be done again.
struct SegmentJournal<'a>(&'a mut Job);

impl Journal for SegmentJournal<'_> {
    fn begin(&mut self, piece: &WorkItem) -> Result<(), Error> {
        let checkpoint = &mut self.0.checkpoint;
        let number = piece.segment().number;
        let is_new = checkpoint.begun.insert(number);
        self.0.has_written();
        match is_new {
            true => self.0.save(),
            false => Ok(()),
        }
    }

    fn done(&mut self, done: Done) -> Result<bool, Error> {
        let number = done.number;
        let checkpoint = &mut self.0.checkpoint;
        checkpoint.begun.remove(&number);
        checkpoint.done.insert(number, done.counts);
        if done.deferred.rows > 0 {
            checkpoint.deferred.insert(number, done.deferred);
        }
        if done.was_repeated {
            checkpoint.repeated.insert(number);
        }
        self.0.save().inspect_err(|_| {
            let checkpoint = &mut self.0.checkpoint;
            checkpoint.begun.insert(number);
            checkpoint.done.remove(&number);
            checkpoint.deferred.remove(&number);
        })?;
        let waiting: u64 = self
            .0
            .checkpoint
            .deferred
            .values()
            .map(|deferred| deferred.bytes)
            .sum();
        Ok(waiting < LATE_BYTES)
    }
}

/// The same of what segments have left for later.
struct LateJournal<'a> {
    job: &'a mut Job,
    deferred: DeferredRows,
}

impl Journal for LateJournal<'_> {
    fn begin(&mut self, piece: &WorkItem) -> Result<(), Error> {
        let number = piece.segment().number;
        if self.job.checkpoint.late_begun.insert(number) {
            return self.job.save();
        }
        Ok(())
    }

    fn done(&mut self, done: Done) -> Result<bool, Error> {
        let number = done.number;
        let checkpoint = &mut self.job.checkpoint;
        checkpoint.late_begun.remove(&number);
        let before = checkpoint.deferred.remove(&number);
        checkpoint.late_done.insert(number, done.counts);
        if done.was_repeated {
            checkpoint.repeated.insert(number);
        }
        self.job.save().inspect_err(|_| {
            let checkpoint = &mut self.job.checkpoint;
            checkpoint.late_begun.insert(number);
            checkpoint.late_done.remove(&number);
            checkpoint
                .deferred
                .extend(before.map(|deferred| (number, deferred)));
        })?;
        self.deferred.remove(number);
        Ok(true)
    }
}
