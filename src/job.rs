//! The whole job for one partition: inspect, load traces, plan, stream, report.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;

use crate::buffer_pool::BufferPool;
use crate::clickhouse::{Connection, sql};
use crate::enrich::Enricher;
use crate::error::Error;
use crate::inspect::{Inspected, inspect};
use crate::load::{self, TraceSource};
use crate::mapping::OBSERVATION;
use crate::memory::peak_resident_bytes;
use crate::options::Options;
use crate::pipeline::{self, Counters, Pipeline, SegmentQuery};
use crate::plan;
use crate::progress::{Display, Phase};
use crate::report::{self, Report, Seconds};
use crate::retry::RetryPolicy;
use crate::state_dir::StateDir;
use crate::trace_store::{Day, SeenTraces, TraceStore};

/// Bytes of a stored trace besides its attributes: key, lengths, filter, index.
const STORE_BYTES_PER_TRACE: u64 = 32;
/// Bytes of a store without traces.
const STORE_BYTES_EMPTY: u64 = 1 << 20;

/// Backfills one partition and prints the summary.
///
/// # Errors
/// [`Error`] with a sentence for the operator and the exit code.
pub async fn run(options: Options) -> Result<(), Error> {
    if options.resume {
        return Err(Error::Configuration(
            "--resume has nothing to continue: runs of this version keep no checkpoint; start over \
             without it (rows that are there already become one with their equals)"
                .to_owned(),
        ));
    }
    let display = Display::detect(options.quiet);
    let connection = Connection::new(options.connection.clone()).map_err(Error::Configuration)?;
    let started = Instant::now();
    let inspected = inspect(&connection, &options).await?;
    describe(&options, &inspected, display);
    if let Some(path) = &options.report {
        report::require_writable(path)?;
    }
    let state = StateDir::prepare(&options.state_dir, options.partition)?;
    state.remove_trace_store()?;
    state.require_space(estimate_store(&inspected))?;
    let store = Arc::new(
        TraceStore::open(&state.trace_store(), options.budget.cache_bytes)
            .map_err(|error| Error::Failed(error.to_string()))?,
    );
    let pool = BufferPool::new(options.budget.pool_bytes);
    let job = Job {
        options,
        connection,
        inspected,
        display,
        counters: Arc::new(Counters::default()),
        pool,
        started,
    };
    let outcome = job.work(&store).await;
    let report = match &outcome {
        Ok(done) => job.report(done, &store, 0),
        Err((_, done)) => job.report(done, &store, 1),
    };
    drop(store);
    if !job.options.quiet {
        println!("\n{report}");
    }
    if let Some(path) = &job.options.report {
        report.write_json(path).map_err(|error| {
            Error::failed(
                format!("the report {} cannot be written", path.display()),
                error,
            )
        })?;
    }
    outcome.map_err(|(error, _)| error)?;
    state.remove_trace_store()
}

/// What is about to be done, in a few lines.
fn describe(options: &Options, inspected: &Inspected, display: Display) {
    let target = &inspected.target;
    let verb = if options.dry_run { "would go" } else { "go" };
    display.note(format_args!(
        "ClickHouse {}: {} rows of {}.observations and {} of traces, partition {}, {verb} into {}.{}",
        inspected.server.version,
        HumanCount(inspected.observation_rows.rows),
        options.database,
        HumanCount(inspected.trace_rows.rows),
        options.partition,
        target.database,
        target.name,
    ));
    if !inspected.mapping.without_place.is_empty() {
        display.note(format_args!(
            "{} has no column for: {}{}",
            target.name,
            inspected.mapping.without_place.join(", "),
            match inspected.mapping.tags_in_metadata {
                true => " (tags go into the metadata, as trace_tags)",
                false => "",
            }
        ));
    }
    if !inspected.mapping.left_to_default.is_empty() {
        display.note(format_args!(
            "left to their defaults: {}",
            inspected.mapping.left_to_default.join(", ")
        ));
    }
}

/// How many bytes the trace store can take. LZ4 brings ids and short texts to
/// about two thirds, but not every text, and a disk that is full is worse than
/// one that has room left.
fn estimate_store(inspected: &Inspected) -> u64 {
    STORE_BYTES_EMPTY + inspected.trace_bytes + inspected.trace_rows.rows * STORE_BYTES_PER_TRACE
}

struct Job {
    options: Options,
    connection: Connection,
    inspected: Inspected,
    display: Display,
    counters: Arc<Counters>,
    pool: BufferPool,
    started: Instant,
}

/// How far the job got.
#[derive(Debug, Default)]
struct Done {
    traces_loaded: u64,
    segments_total: u64,
    load: Duration,
    stream: Duration,
}

impl Job {
    /// Both phases; on failure the error, and what was done before it.
    async fn work(&self, store: &Arc<TraceStore>) -> Result<Done, (Error, Done)> {
        let mut done = Done::default();
        let load_started = Instant::now();
        match self.load_traces(store).await {
            Ok(traces) => done.traces_loaded = traces,
            Err(error) => return Err((error, done)),
        }
        done.load = load_started.elapsed();
        let stream_started = Instant::now();
        let streamed = self
            .stream_observations(store, &mut done.segments_total)
            .await;
        done.stream = stream_started.elapsed();
        match streamed {
            Ok(()) => Ok(done),
            Err(error) => Err((error, done)),
        }
    }

    async fn load_traces(&self, store: &TraceStore) -> Result<u64, Error> {
        let expected = self.inspected.trace_rows.rows;
        let phase = Phase::begin(self.display, "traces loaded", expected, 0);
        let mut traces = 0;
        if expected > 0 {
            let mut seen = SeenTraces::new(expected, self.options.budget.seen_bytes);
            for day in self.options.partition.days() {
                traces += self.load_day(store, day, &mut seen, &phase).await?;
            }
            drop(seen);
            traces -= tokio::task::block_in_place(|| store.settle_moved_traces())
                .map_err(|error| Error::Failed(error.to_string()))?;
        }
        phase.finish();
        Ok(traces)
    }

    /// Loads one day, again and again while what stops it may pass.
    async fn load_day(
        &self,
        store: &TraceStore,
        day: Day,
        seen: &mut SeenTraces,
        phase: &Phase,
    ) -> Result<u64, Error> {
        let partition_id = self.options.partition.to_string();
        let source = TraceSource {
            connection: &self.connection,
            table: &self.inspected.traces,
            partition_id: &partition_id,
            mapping: &self.inspected.mapping,
            budget: self.options.budget,
            pool: self.pool.clone(),
        };
        let retries = self.retry_policy();
        let mut failures = 0;
        let mut block_rows = load::BLOCK_ROWS;
        loop {
            let shown = AtomicU64::new(0);
            let on_rows = |rows| {
                shown.fetch_add(rows, Ordering::Relaxed);
                phase.advance(rows);
            };
            let error = match source
                .load_day(store, day, block_rows, seen, &on_rows)
                .await
            {
                Ok(loaded) => return Ok(loaded.traces),
                Err(error) => error,
            };
            phase.go_back(shown.into_inner());
            if let Some(fewer) = error.smaller_blocks(block_rows) {
                block_rows = fewer;
                continue;
            }
            failures += 1;
            let wait = error
                .is_passing()
                .then(|| retries.wait_after(failures))
                .flatten();
            let Some(wait) = wait else {
                return Err(Error::Failed(format!(
                    "the traces of {} could not be loaded: {error}{}",
                    date(day),
                    error.advice()
                )));
            };
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            phase.note(format_args!("loading traces: {error}; trying again"));
            tokio::time::sleep(wait).await;
        }
    }

    async fn stream_observations(
        &self,
        store: &Arc<TraceStore>,
        segments_total: &mut u64,
    ) -> Result<(), Error> {
        let partition = &self.inspected.observation_rows;
        let segments = plan::make(
            &self.connection,
            &self.inspected.observations,
            &partition.partition_id,
            partition.parts,
            self.options.segment_rows,
        )
        .await
        .map_err(|error| Error::failed("the partition cannot be divided into segments", error))?;
        *segments_total = segments.len() as u64;
        let planned = segments.iter().map(|segment| segment.rows).sum();
        let name = match self.options.dry_run {
            true => "observations read",
            false => "observations processed",
        };
        let phase = Arc::new(Phase::begin(self.display, name, planned, 0));
        let result = pipeline::run(
            Arc::new(self.pipeline(store)),
            segments,
            Arc::clone(&self.counters),
            Arc::clone(&phase),
        )
        .await;
        phase.finish();
        result
    }

    fn pipeline(&self, store: &Arc<TraceStore>) -> Pipeline {
        let inspected = &self.inspected;
        let mapping = Arc::new(inspected.mapping.clone());
        let budget = self.options.budget;
        // The ARRAY JOIN changes no row. It divides blocks to max_block_size,
        // which FINAL alone does not: it yields granules of up to 10 MiB.
        let select = format!(
            "SELECT {} FROM {} AS {OBSERVATION} FINAL ARRAY JOIN [1] AS one WHERE {OBSERVATION}._partition_id = {}",
            mapping.select_list(),
            inspected.observations.qualified_name(),
            sql::string(&inspected.observation_rows.partition_id),
        );
        let insert_sql = format!(
            "INSERT INTO {} ({}) FORMAT Native",
            inspected.target.qualified_name(),
            mapping.insert_columns()
        );
        Pipeline {
            connection: self.connection.clone(),
            enricher: Enricher::new(
                mapping,
                Arc::clone(store),
                budget.max_block_bytes,
                BufferPool::new(budget.pool_bytes),
            ),
            query: SegmentQuery {
                select,
                excluded_by: inspected
                    .dataset_items
                    .as_ref()
                    .map(|table| table.qualified_name()),
            },
            insert_sql,
            target_has_views: inspected.target.has_views,
            run_id: new_run_id(),
            dry_run: self.options.dry_run,
            budget,
            pool: self.pool.clone(),
            batch_rows: self.options.batch_rows,
            // A block is never divided, so it must not be larger than a batch.
            block_rows: AtomicUsize::new(self.options.block_rows.min(self.options.batch_rows)),
            retries: self.retry_policy(),
            concurrency: self.options.concurrency,
        }
    }

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_retries: self.options.max_retries,
        }
    }

    fn report(&self, done: &Done, store: &TraceStore, errors: u64) -> Report {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let observations = count(&self.counters.observations);
        let stream = done.stream.as_secs_f64();
        let insert = Duration::from_nanos(count(&self.counters.insert_nanoseconds));
        Report {
            partition: self.options.partition.to_string(),
            target_table: format!(
                "{}.{}",
                self.inspected.target.database, self.inspected.target.name
            ),
            dry_run: self.options.dry_run,
            resumed: false,
            traces_loaded: done.traces_loaded,
            observations_processed: observations,
            events_inserted: count(&self.counters.inserted),
            observations_without_trace: count(&self.counters.without_trace),
            errors,
            retries: count(&self.counters.retries),
            segments_total: done.segments_total,
            segments_done: count(&self.counters.segments),
            peak_rss_bytes: peak_resident_bytes(),
            store_bytes: store.disk_bytes(),
            seconds: Seconds {
                load: done.load.as_secs_f64(),
                stream,
                insert: insert.as_secs_f64(),
                total: self.started.elapsed().as_secs_f64(),
            },
            observations_per_second: if stream > 0.0 {
                observations as f64 / stream
            } else {
                0.0
            },
        }
    }
}

/// A day as `YYYY-MM-DD`.
fn date(day: Day) -> String {
    const EPOCH: i32 = 2_440_588; // Julian day of 1970-01-01
    time::Date::from_julian_day(EPOCH + i32::from(day))
        .map_or_else(|_| format!("day {day}"), |date| date.to_string())
}

/// A name no other run has.
fn new_run_id() -> String {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", since_1970.as_nanos(), fastrand::u64(..))
}
