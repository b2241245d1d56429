//! Phase two: turns observations, then traces, into events.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::context::Context;
use super::guard::Guard;
use super::journal::Journal;
use super::known_rows::recovery;
use super::look_ahead::LookAhead;
use super::pipeline::compress::Compressor;
use super::pipeline::limits::{InsertLimits, first_part_bytes};
use super::pipeline::send::Destination;
use super::pipeline::{self, Done, Pipeline, Records, WorkItem};
use super::prepare::Prepared;
use super::pushdown::{KeyFile, Pushdown, TraceName, insert_threads};
use super::remote_lookup;
use super::remote_lookup::deferred_rows::DeferredRows;
use super::remote_lookup::query::Question;
use super::wanted_rows::WantedRows;
use crate::cli::options::Engine;
use crate::enrich::{Enricher, Unknown};
use crate::error::Error;
use crate::mapping::Source;
use crate::memory::numbers::in_memory;
use crate::progress::Phase;
use crate::state::checkpoint::Checkpoint;
use crate::trace_store::TraceStore;

/// Once this many bytes of observations are deferred, look up their traces before starting more
/// segments.
const DEFERRED_BYTES: u64 = 1 << 30;

/// Writes a source's events while reloading traces that change.
///
/// # Errors
/// [`Error`] if reading, enriching or writing fails, or on a signal.
pub(super) async fn stream(
    context: &Context,
    journal: &mut Journal,
    source: Source,
    store: &Arc<TraceStore>,
    destination: &Arc<Destination>,
    prepared: Option<&Prepared>,
) -> Result<(), Error> {
    let keys = prepared.and_then(|prepared| prepared.keys.clone());
    let phase = Arc::new(begin_phase(context, journal.checkpoint(), source));
    let pipeline = Arc::new(pipeline(
        context,
        journal,
        source,
        store,
        destination,
        keys,
    )?);
    let streaming = async {
        let looks_ahead = pipeline.pushdown.is_some() && source == Source::Observations;
        let mut ahead = looks_ahead.then(|| {
            let remaining = journal.checkpoint().remaining(source);
            LookAhead::new(&pipeline, remaining, context.options.concurrency)
        });
        let mut outcome = Ok(());
        while outcome.is_ok() && !is_streamed(journal.checkpoint(), source) {
            let ahead = ahead.as_mut();
            outcome =
                stream_segments(context, journal, source, &pipeline, store, &phase, ahead).await;
            if outcome.is_ok() {
                outcome = stream_deferred(context, journal, source, &pipeline, store).await;
            }
        }
        outcome
    };
    let outcome = match prepared.map(|prepared| &prepared.changes) {
        Some(changes) => tokio::select! {
            outcome = streaming => outcome,
            error = changes.watch() => Err(error),
        },
        None => streaming.await,
    };
    phase.finish();
    outcome
}

fn begin_phase(context: &Context, checkpoint: &Checkpoint, source: Source) -> Phase {
    let rows = |source| checkpoint.segments_of(source).map(|s| s.rows).sum();
    let planned: u64 = rows(source);
    let before = match source {
        Source::Observations => 0,
        Source::Traces => rows(Source::Observations),
    };
    let whole = Source::BOTH.map(rows).iter().sum();
    let left = checkpoint.remaining(source);
    let left: u64 = left.iter().map(|segment| segment.rows).sum();
    let name = match (source, context.options.dry_run) {
        (Source::Observations, true) => "observations read",
        (Source::Observations, false) => "observations processed",
        (Source::Traces, true) => "root spans read",
        (Source::Traces, false) => "root spans processed",
    };
    Phase::begin(&context.display, name, planned, planned - left).leading(before, whole)
}

fn is_streamed(checkpoint: &Checkpoint, source: Source) -> bool {
    checkpoint.remaining(source).is_empty() && checkpoint.deferred_of(source).next().is_none()
}

/// Works on the remaining segments, until too many rows are deferred.
async fn stream_segments(
    context: &Context,
    journal: &mut Journal,
    source: Source,
    pipeline: &Arc<Pipeline>,
    store: &TraceStore,
    phase: &Arc<Phase>,
    ahead: Option<&mut LookAhead>,
) -> Result<(), Error> {
    let mut segments = journal.checkpoint().remaining(source);
    if let Some(ahead) = ahead {
        let traces;
        (segments, traces) = context
            .unless_interrupted(async { Ok(ahead.next(segments).await) })
            .await?;
        look_up(context, journal, store, traces).await?;
    }
    let items = segments.into_iter().map(WorkItem::Segment).collect();
    let mut records = SegmentRecords(journal);
    let (pipeline, phase) = (Arc::clone(pipeline), Arc::clone(phase));
    pipeline::run(pipeline, items, phase, &mut records).await
}

/// Looks up traces before the rows of their observations are written.
async fn look_up(
    context: &Context,
    journal: &mut Journal,
    store: &TraceStore,
    traces: Vec<TraceName>,
) -> Result<(), Error> {
    let mut question = Question::default();
    for (project, id) in traces {
        question.add_trace(project, id);
        if question.is_full() {
            let question = std::mem::take(&mut question);
            remote_lookup::look_up_missing(context, journal, question, store).await?;
        }
    }
    remote_lookup::look_up_missing(context, journal, question, store).await
}

/// Looks up the traces of deferred rows and writes their events.
async fn stream_deferred(
    context: &Context,
    journal: &mut Journal,
    source: Source,
    pipeline: &Arc<Pipeline>,
    store: &Arc<TraceStore>,
) -> Result<(), Error> {
    let deferred = journal.checkpoint().deferred_of(source);
    let rows = deferred.map(|(_, deferred)| deferred.rows).sum();
    if rows == 0 {
        return Ok(());
    }
    let name = "with distant traces";
    let phase = Arc::new(Phase::begin(&context.display, name, rows, 0));
    remote_lookup::look_up_deferred(context, journal, pipeline, source, store).await?;
    let checkpoint = journal.checkpoint();
    let deferred = checkpoint.deferred_of(source);
    let items = deferred.filter_map(|(number, counts)| {
        let segment = checkpoint.segment(number)?.clone();
        Some(WorkItem::Deferred { segment, counts })
    });
    let items: Vec<WorkItem> = items.collect();
    let mut records = DeferredRecords {
        journal,
        deferred: pipeline.deferred.clone(),
    };
    let (pipeline, shown) = (Arc::clone(pipeline), Arc::clone(&phase));
    let outcome = pipeline::run(pipeline, items, shown, &mut records).await;
    phase.finish();
    outcome
}

/// A source's name in metrics.
pub(super) fn name_of(source: Source) -> &'static str {
    match source {
        Source::Observations => "observations",
        Source::Traces => "root_spans",
    }
}

/// Where a source's events go.
pub(super) fn destination(context: &Context, run_id: &str, source: Source) -> Destination {
    let (target, budget) = (&context.inspected.target, &context.options.budget);
    let server = &context.inspected.server;
    let concurrency = context.options.concurrency;
    let writers = match context.options.engine {
        Engine::Embedded => concurrency,
        Engine::ClickHouse => concurrency * insert_threads(server, concurrency),
    };
    Destination {
        connection: context.connection.clone(),
        table: format!("{}.{}", target.database, target.name),
        insert_sql: format!(
            "INSERT INTO {} ({}) FORMAT Native",
            target.qualified_name(),
            context.inspected.mapping_of(source).insert_columns()
        ),
        has_views: target.has_views,
        query_prefix: format!("{}{:x}", context.query_prefix(run_id), fastrand::u64(..)),
        dry_run: context.options.dry_run,
        part_rows: context.options.batch_rows,
        limits: InsertLimits::new(in_memory(first_part_bytes(
            context.options.part_bytes.0,
            server.memory,
            server.statement_memory,
            writers,
        ))),
        longest_insert: context
            .connection
            .longest_statement()
            .map(|limit| limit / 3),
        backlog_bytes: budget.backlog_bytes,
        compressor: Compressor {
            compression: context.connection.compression(),
            pool: budget.pool(),
        },
        retries: context.retries.clone(),
        throttle: context.throttle.clone(),
        telemetry: context.telemetry.clone(),
        source: name_of(source),
        shutdown: context.shutdown.clone(),
    }
}

fn pipeline(
    context: &Context,
    journal: &Journal,
    source: Source,
    store: &Arc<TraceStore>,
    destination: &Arc<Destination>,
    keys: Option<Arc<KeyFile>>,
) -> Result<Pipeline, Error> {
    let (inspected, options) = (&context.inspected, &context.options);
    let mapping = Arc::new(inspected.mapping_of(source).clone());
    let budget = options.budget;
    let target = journal.checkpoint().target.as_ref();
    let until = target.and_then(|target| target.until);
    let guard = Guard::new(&mapping, Arc::clone(store), until).map_err(Error::configuration)?;
    let pushdown = (options.engine == Engine::ClickHouse && !context.is_repair).then(|| {
        let (store, destination) = (Arc::clone(store), Arc::clone(destination));
        let segments = options.concurrency;
        Pushdown::new(
            inspected,
            source,
            store,
            until,
            destination,
            budget,
            segments,
        )
    });
    let pushdown = pushdown.transpose().map_err(Error::configuration)?;
    let keys = keys.filter(|_| source == Source::Observations);
    let pushdown = pushdown.map(|pushdown| match keys {
        Some(keys) => pushdown.with_keys(keys, inspected.partition(source)),
        None => pushdown,
    });
    Ok(Pipeline {
        guard,
        recovery: recovery(context, journal.checkpoint(), store),
        enricher: Enricher::new(mapping, Arc::clone(store), budget.pool()),
        query: inspected.segment_query(source),
        source: inspected.partition(source).table.clone(),
        wanted: context.is_repair.then(|| {
            let partition = inspected.partition(source);
            WantedRows {
                store: Arc::clone(store),
                table: partition.table.qualified_name(),
                partition_id: partition.id.to_owned(),
            }
        }),
        destination: Arc::clone(destination),
        budget,
        pool: context.pool.clone(),
        deferred: DeferredRows::new(context.state.deferred_rows()),
        unknown: match source {
            // There is nowhere else to look.
            Source::Observations
                if !options.subject.remote_lookup && store.caches_all_days()? =>
            {
                Unknown::WithoutTrace
            }
            // An observation's trace may be on another day. A root span's trace may have arrived
            // after the traces were loaded.
            Source::Observations | Source::Traces => Unknown::Deferred,
        },
        // The server does not split a block, so a block must not exceed a part.
        block_rows: options.block_rows.min(options.batch_rows),
        pushdown,
    })
}

/// Records a source's progress. Unrecorded work is repeated.
struct SegmentRecords<'a>(&'a mut Journal);

impl Records for SegmentRecords<'_> {
    fn begin(&mut self, item: &WorkItem) -> Result<(), Error> {
        let number = item.segment().number;
        // From here on, a change may affect events already written.
        let changes = self.0.changes();
        changes.has_written.store(true, Ordering::Relaxed);
        match self.0.checkpoint().begun.contains(&number) {
            true => Ok(()),
            false => self.0.commit(|checkpoint| {
                checkpoint.begun.insert(number);
            }),
        }
    }

    fn done(&mut self, done: Done) -> Result<bool, Error> {
        let number = done.number;
        self.0.commit(|checkpoint| {
            checkpoint.begun.remove(&number);
            checkpoint.done.insert(number, done.counts);
            if done.deferred.rows > 0 {
                checkpoint.deferred.insert(number, done.deferred);
            }
            if done.was_repeated {
                checkpoint.repeated.insert(number);
            }
        })?;
        let deferred = self.0.checkpoint().deferred.values();
        let waiting: u64 = deferred.map(|deferred| deferred.bytes).sum();
        Ok(waiting < DEFERRED_BYTES)
    }
}

/// Records progress on deferred rows.
struct DeferredRecords<'a> {
    journal: &'a mut Journal,
    deferred: DeferredRows,
}

impl Records for DeferredRecords<'_> {
    fn begin(&mut self, item: &WorkItem) -> Result<(), Error> {
        let number = item.segment().number;
        match self.journal.checkpoint().deferred_begun.contains(&number) {
            true => Ok(()),
            false => self.journal.commit(|checkpoint| {
                checkpoint.deferred_begun.insert(number);
            }),
        }
    }

    fn done(&mut self, done: Done) -> Result<bool, Error> {
        let number = done.number;
        self.journal.commit(|checkpoint| {
            checkpoint.deferred_begun.remove(&number);
            checkpoint.deferred.remove(&number);
            checkpoint.deferred_done.insert(number, done.counts);
            if done.was_repeated {
                checkpoint.repeated.insert(number);
            }
        })?;
        self.deferred.remove(number);
        Ok(true)
    }
}
