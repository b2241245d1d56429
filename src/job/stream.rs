//! The second phase: observations become events, then traces root spans.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::Job;
use crate::batch::{BatchLimit, BatchMaker};
use crate::clickhouse::Compression;
use crate::enrich::{Enricher, Unknown};
use crate::error::Error;
use crate::mapping::Source;
use crate::memory;
use crate::pipeline::{self, Done, Piece, Pipeline};
use crate::plan;
use crate::progress::Phase;
use crate::send::Destination;
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
        let pipeline = Arc::new(self.pipeline(source, store, destination));
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.is_streamed(source) {
            outcome = self.stream_segments(source, &pipeline, &phase).await;
            if outcome.is_ok() {
                outcome = self.stream_late(source, &pipeline, store).await;
            }
        }
        phase.finish();
        outcome
    }

    fn is_streamed(&self, source: Source) -> bool {
        self.checkpoint.remaining(source).is_empty() && self.checkpoint.late.is_empty()
    }

    /// Works on the segments that are left, until too much waits for its traces.
    async fn stream_segments(
        &mut self,
        source: Source,
        pipeline: &Arc<Pipeline>,
        phase: &Arc<Phase>,
    ) -> Result<(), Error> {
        let pieces = self.checkpoint.remaining(source);
        let pieces = pieces.into_iter().map(Piece::Segment);
        let pieces = pieces.collect();
        let on_done = |done: Done| {
            self.checkpoint.done.insert(done.number, done.counts);
            if done.late.rows > 0 {
                self.checkpoint.late.insert(done.number, done.late);
            }
            // What is not written down will be done again.
            self.save().inspect_err(|_| {
                self.checkpoint.done.remove(&done.number);
                self.checkpoint.late.remove(&done.number);
            })?;
            let waiting: u64 = self.checkpoint.late.values().map(|late| late.bytes).sum();
            Ok(waiting < LATE_BYTES)
        };
        pipeline::run(Arc::clone(pipeline), pieces, Arc::clone(phase), on_done).await
    }

    /// Looks for the traces of the observations that wait, and makes events of them.
    async fn stream_late(
        &mut self,
        source: Source,
        pipeline: &Arc<Pipeline>,
        store: &Arc<TraceStore>,
    ) -> Result<(), Error> {
        if self.checkpoint.late.is_empty() {
            return Ok(());
        }
        let rows = self.checkpoint.late.values().map(|late| late.rows).sum();
        let name = "with traces elsewhere";
        let phase = Arc::new(Phase::begin(&self.display, name, rows, 0));
        self.look_elsewhere(source, pipeline, store).await?;
        let late = self.checkpoint.late.iter();
        let pieces = late.map(|(&number, &counts)| Piece::Late { number, counts });
        let pieces = pieces.collect();
        let on_done = |done: Done| {
            let before = self.checkpoint.late.remove(&done.number);
            self.checkpoint.late_done.insert(done.number, done.counts);
            self.save().inspect_err(|_| {
                self.checkpoint.late_done.remove(&done.number);
                self.checkpoint
                    .late
                    .extend(before.map(|late| (done.number, late)));
            })?;
            pipeline.late.remove(done.number);
            Ok(true)
        };
        let outcome =
            pipeline::run(Arc::clone(pipeline), pieces, Arc::clone(&phase), on_done).await;
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
        let plan = plan::make(&self.connection, &partitions, self.options.segment_rows);
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
            run_id: format!("{}-{:x}", self.checkpoint.run_id, fastrand::u64(..)),
            dry_run: self.options.dry_run,
            limit: BatchLimit::new(match self.connection.compression() {
                Compression::None => self.options.budget.batch_bytes,
                // They take less memory than they have bytes.
                Compression::Lz4 => memory::LARGEST_BATCH as usize,
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
    ) -> Pipeline {
        let inspected = &self.inspected;
        let mapping = Arc::new(inspected.mapping_of(source).clone());
        let budget = self.options.budget;
        Pipeline {
            enricher: Enricher::new(mapping, Arc::clone(store), budget.pool()),
            query: inspected.segment_query(source),
            destination: Arc::clone(destination),
            budget,
            pool: self.pool.clone(),
            batches: BatchMaker {
                compression: self.connection.compression(),
                pool: budget.pool(),
            },
            late: self.state.late_rows(),
            unknown: match (source, self.options.remote_lookup) {
                (Source::Observations, false) => Unknown::WithoutTrace,
                // What is missing arrived after the traces were loaded.
                (Source::Traces, _) | (_, true) => Unknown::Late,
            },
            batch_rows: self.options.batch_rows,
            // A block is never divided, so it must not be larger than a batch.
            block_rows: self.options.block_rows.min(self.options.batch_rows),
            concurrency: self.options.concurrency,
        }
    }
}
