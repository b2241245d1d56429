//! The whole job for one partition: inspect, plan, load traces, stream, report.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;

use crate::batch::{BatchLimit, BatchMaker};
use crate::begin::{self, Begin};
use crate::buffer_pool::BufferPool;
use crate::checkpoint::{Checkpoint, MadeFor};
use crate::clickhouse::{Compression, Connection, sql};
use crate::enrich::Enricher;
use crate::error::{Error, WorkError, advice_on_files};
use crate::inspect::{Inspected, inspect};
use crate::load::{self, LoadedDay, TraceSource};
use crate::mapping::OBSERVATION;
use crate::memory::{self, peak_resident_bytes};
use crate::options::Options;
use crate::pipeline::{self, Pipeline, SegmentQuery};
use crate::plan::{self, Segment};
use crate::progress::{Display, Phase};
use crate::report::{self, Report, Seconds};
use crate::retry::Retries;
use crate::send::Destination;
use crate::shutdown::Shutdown;
use crate::state_dir::StateDir;
use crate::trace_store::{Day, SeenTraces, StoreError, TraceStore};

/// Bytes of a stored trace besides its attributes: key, lengths, filter, index.
const STORE_BYTES_PER_TRACE: u64 = 32;
/// Bytes of a store without traces.
const STORE_BYTES_EMPTY: u64 = 1 << 20;

/// Backfills one partition and prints the summary.
///
/// # Errors
/// [`Error`] with a sentence for the operator and the exit code.
pub async fn run(options: Options) -> Result<(), Error> {
    let display = Display::detect(options.quiet);
    let shutdown = Shutdown::listen()
        .map_err(|error| Error::failed("the program cannot listen to signals", error))?;
    let connection = Connection::new(options.connection.clone()).map_err(Error::Configuration)?;
    let started = Instant::now();
    let retries = Retries::new(options.max_retries, shutdown.clone(), display.clone());
    let inspected = tokio::select! {
        inspected = inspect(&connection, &options, &retries) => inspected?,
        signal = shutdown.requested() => return Err(Error::interrupted(signal)),
    };
    let connection = connection.with_retries(&retries);
    if let Some(path) = &options.report {
        report::require_writable(path)?;
    }
    let state = StateDir::prepare(&options.state_dir, options.partition, options.dry_run)?;
    let made_for = MadeFor::new(&options, &inspected);
    let stored = Checkpoint::read(&state.checkpoint());
    let begin = begin::decide(
        stored,
        &made_for,
        state.path(),
        options.resume,
        options.restart,
    )?;
    let (checkpoint, resumed) = match begin {
        Begin::Over(message) => {
            display.note(message);
            return Ok(());
        }
        Begin::Continue(checkpoint) => (*checkpoint, true),
        Begin::Fresh => {
            state.clear()?;
            state.require_space(estimate_store(&inspected))?;
            (
                Checkpoint::begin(made_for, new_run_id(), seconds_since_1970()),
                false,
            )
        }
    };
    describe(&options, &inspected, &display);
    if resumed {
        display.note(format_args!(
            "going on with {}",
            begin::progress(&checkpoint)
        ));
    }
    let pool = options.budget.pool();
    let mut job = Job {
        observations_before: checkpoint.counts().observations,
        options,
        connection,
        inspected,
        state,
        checkpoint,
        resumed,
        display,
        shutdown,
        retries,
        pool,
        started,
    };
    let outcome = job.work_and_report().await;
    if job.options.dry_run {
        job.state.remove();
    }
    outcome
}

/// What is about to be done, in a few lines.
fn describe(options: &Options, inspected: &Inspected, display: &Display) {
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
    state: StateDir,
    checkpoint: Checkpoint,
    resumed: bool,
    /// Observations that were done before this process began.
    observations_before: u64,
    display: Display,
    shutdown: Shutdown,
    retries: Retries,
    pool: BufferPool,
    started: Instant,
}

/// Where the time of this process went, and what the store took.
#[derive(Debug, Default)]
struct Spent {
    load: Duration,
    stream: Duration,
    insert: Duration,
    store_bytes: u64,
}

impl Job {
    async fn work_and_report(&mut self) -> Result<(), Error> {
        let mut spent = Spent::default();
        let outcome = self.work(&mut spent).await;
        let failed = matches!(outcome, Err(Error::Failed(_) | Error::Configuration(_)));
        let report = self.report(&spent, failed);
        let wanted = self.options.report.clone();
        let kept = (!self.options.dry_run).then(|| self.state.report());
        let mut written = Ok(());
        for path in wanted.into_iter().chain(kept) {
            written = written.and(report.write_json(&path).map_err(|error| {
                Error::Failed(format!(
                    "the report {} cannot be written: {error}{}",
                    path.display(),
                    advice_on_files(&error)
                ))
            }));
        }
        if !self.options.quiet {
            // If nobody reads it, the work is done all the same.
            let _ = writeln!(std::io::stdout().lock(), "\n{report}");
        }
        // What went wrong first is what the operator must know.
        outcome.and(written)
    }

    /// Both phases.
    async fn work(&mut self, spent: &mut Spent) -> Result<(), Error> {
        let segments = self.plan().await?;
        let store = Arc::new(self.open_store()?);
        let load_started = Instant::now();
        let loaded = self.load_traces(&store).await;
        spent.load = load_started.elapsed();
        spent.store_bytes = store.disk_bytes();
        loaded.map_err(|error| self.with_way_on(error))?;
        let stream_started = Instant::now();
        let destination = Arc::new(self.destination());
        let streamed = self
            .stream_observations(&store, &segments, &destination)
            .await;
        spent.stream = stream_started.elapsed();
        spent.insert = Duration::from_nanos(destination.insert_nanoseconds.load(Ordering::Relaxed));
        streamed.map_err(|error| self.with_way_on(error))?;
        drop(store);
        self.checkpoint.finished = true;
        self.save().map_err(|error| self.with_way_on(error))?;
        if self.options.keep_traces {
            return Ok(());
        }
        self.state.remove_trace_store()
    }

    fn open_store(&self) -> Result<TraceStore, Error> {
        let path = self.state.trace_store();
        let cache_bytes = self.options.budget.cache_bytes;
        let run_id = &self.checkpoint.run_id;
        if self.resumed {
            let days: Vec<Day> = self.checkpoint.days.keys().copied().collect();
            return TraceStore::reopen(&path, cache_bytes, run_id, &days).map_err(|error| {
                let error = WorkError::Store(error);
                match error.advice() {
                    "" => Error::Failed(format!("{error}; --restart discards it and starts over")),
                    // Nothing is wrong with the store that room would not mend.
                    advice => Error::Failed(format!("{error}{advice}")),
                }
            });
        }
        let store = TraceStore::create(&path, cache_bytes, run_id).map_err(store_failed)?;
        self.save_to_disk()?;
        Ok(store)
    }

    /// Writes the checkpoint.
    fn save(&mut self) -> Result<(), Error> {
        self.checkpoint.saved_at = seconds_since_1970();
        self.save_to_disk()
    }

    fn save_to_disk(&self) -> Result<(), Error> {
        if self.options.dry_run {
            return Ok(());
        }
        let path = self.state.checkpoint();
        self.checkpoint.write(&path).map_err(|error| {
            Error::Failed(format!(
                "the checkpoint {} cannot be written: {error}{}",
                path.display(),
                advice_on_files(&error)
            ))
        })
    }

    /// Says how to go on after an error that left something to go on with.
    fn with_way_on(&self, error: Error) -> Error {
        if self.options.dry_run {
            return error;
        }
        let way_on = format!(
            "; {} so far: continue with --resume",
            begin::progress(&self.checkpoint)
        );
        match error {
            Error::Failed(message) => Error::Failed(message + &way_on),
            Error::Interrupted { signal, message } => Error::Interrupted {
                signal,
                message: message + &way_on,
            },
            Error::Configuration(_) => error,
        }
    }

    async fn load_traces(&mut self, store: &TraceStore) -> Result<(), Error> {
        if self.checkpoint.superseded.is_some() {
            return Ok(());
        }
        let expected = self.inspected.trace_rows.rows;
        let before = self.checkpoint.days.values().map(|(rows, _)| rows).sum();
        let phase = Phase::begin(&self.display, "traces loaded", expected, before);
        let mut superseded = 0;
        if expected > 0 {
            let mut seen = SeenTraces::new(expected, self.options.budget.seen_bytes);
            let shutdown = self.shutdown.clone();
            let stop = || shutdown.signal().is_some();
            tokio::task::block_in_place(|| seen.remember(store, &stop)).map_err(store_failed)?;
            let mut block_rows = load::BLOCK_ROWS;
            for days in self.days_to_load(expected) {
                let loaded = self
                    .load_days(store, &days, &mut block_rows, &mut seen, &phase)
                    .await?;
                let loaded = loaded.iter();
                let done = loaded.map(|(&day, loaded)| (day, (loaded.rows_read, loaded.traces)));
                self.checkpoint.days.extend(done);
                // What is not written down will be done again.
                self.save().inspect_err(|_| {
                    self.checkpoint.days.retain(|day, _| !days.contains(day));
                })?;
            }
            drop(seen);
            let settled = tokio::task::block_in_place(|| store.settle_moved_traces(&stop));
            superseded = settled
                .map_err(store_failed)?
                .ok_or_else(|| Error::interrupted(self.shutdown.signal().unwrap_or_default()))?;
        }
        self.checkpoint.superseded = Some(superseded);
        self.save()?;
        phase.finish();
        Ok(())
    }

    /// The days that are not loaded yet, a few together where the partition is
    /// small, given its rows.
    fn days_to_load(&self, rows: u64) -> Vec<RangeInclusive<Day>> {
        let days: Vec<Day> = self.options.partition.days().collect();
        let together = load::days_per_query(rows, days.len());
        let missing = |day: &Day| !self.checkpoint.days.contains_key(day);
        let missing: Vec<Day> = days.into_iter().filter(missing).collect();
        missing
            .chunk_by(|day, next| day + 1 == *next)
            .flat_map(|neighbours| neighbours.chunks(together))
            .map(|days| days[0]..=days[days.len() - 1])
            .collect()
    }

    /// Loads some days, again and again while what stops it may pass.
    async fn load_days(
        &self,
        store: &TraceStore,
        days: &RangeInclusive<Day>,
        block_rows: &mut usize,
        seen: &mut SeenTraces,
        phase: &Phase,
    ) -> Result<BTreeMap<Day, LoadedDay>, Error> {
        let partition_id = self.options.partition.to_string();
        let source = TraceSource {
            connection: &self.connection,
            table: &self.inspected.traces,
            partition_id: &partition_id,
            mapping: &self.inspected.mapping,
            budget: self.options.budget,
            pool: self.pool.clone(),
        };
        let mut tries = self.retries.tries();
        loop {
            let shown = AtomicU64::new(0);
            let on_rows = |rows| {
                shown.fetch_add(rows, Ordering::Relaxed);
                phase.advance(rows);
            };
            let load = source.load_days(
                store,
                days.clone(),
                *block_rows,
                seen,
                &on_rows,
                &self.shutdown,
            );
            let error = match load.await {
                Ok(loaded) => return Ok(loaded),
                Err(error) => error,
            };
            phase.go_back(shown.into_inner());
            if let Some(signal) = self.shutdown.signal() {
                return Err(Error::interrupted(signal));
            }
            if let Some(fewer) = error.smaller_blocks(*block_rows) {
                // Rows are larger than expected, and the other days' are alike.
                *block_rows = fewer;
                continue;
            }
            let what = format!("loading the traces of {}: {error}", dates(days));
            if !tries.again(error.is_passing(), what).await {
                return Err(Error::Failed(format!(
                    "the traces of {} could not be loaded{}: {error}{}",
                    dates(days),
                    tries.in_words(),
                    error.advice()
                )));
            }
        }
    }

    async fn stream_observations(
        &mut self,
        store: &Arc<TraceStore>,
        segments: &[Segment],
        destination: &Arc<Destination>,
    ) -> Result<(), Error> {
        let planned = segments.iter().map(|segment| segment.rows).sum();
        let remaining = self.checkpoint.remaining();
        let left: u64 = remaining.iter().map(|segment| segment.rows).sum();
        let name = match self.options.dry_run {
            true => "observations read",
            false => "observations processed",
        };
        let phase = Arc::new(Phase::begin(&self.display, name, planned, planned - left));
        let pipeline = Arc::new(self.pipeline(store, destination));
        let on_done = |number, counts| {
            self.checkpoint.done.insert(number, counts);
            // What is not written down will be done again.
            self.save().inspect_err(|_| {
                self.checkpoint.done.remove(&number);
            })
        };
        let result = pipeline::run(pipeline, remaining, Arc::clone(&phase), on_done).await;
        phase.finish();
        result
    }

    /// The plan: the one in the checkpoint, or a new one that is kept there.
    async fn plan(&mut self) -> Result<Vec<Segment>, Error> {
        if let Some(segments) = &self.checkpoint.segments {
            return Ok(segments.clone());
        }
        let partition = &self.inspected.observation_rows;
        let plan = plan::make(
            &self.connection,
            &self.inspected.observations,
            &partition.partition_id,
            partition.parts,
            self.options.segment_rows,
        );
        let segments = tokio::select! {
            segments = plan => segments.map_err(|error| {
                Error::failed("the partition cannot be divided into segments", error)
            })?,
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        };
        self.checkpoint.segments = Some(segments.clone());
        Ok(segments)
    }

    fn destination(&self) -> Destination {
        let target = &self.inspected.target;
        Destination {
            connection: self.connection.clone(),
            insert_sql: format!(
                "INSERT INTO {} ({}) FORMAT Native",
                target.qualified_name(),
                self.inspected.mapping.insert_columns()
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

    fn pipeline(&self, store: &Arc<TraceStore>, destination: &Arc<Destination>) -> Pipeline {
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
        Pipeline {
            enricher: Enricher::new(mapping, Arc::clone(store), budget.pool()),
            query: SegmentQuery {
                select,
                excluded_by: inspected
                    .dataset_items
                    .as_ref()
                    .map(|table| table.qualified_name()),
            },
            destination: Arc::clone(destination),
            budget,
            pool: self.pool.clone(),
            batches: BatchMaker {
                compression: self.connection.compression(),
                pool: budget.pool(),
            },
            batch_rows: self.options.batch_rows,
            // A block is never divided, so it must not be larger than a batch.
            block_rows: self.options.block_rows.min(self.options.batch_rows),
            concurrency: self.options.concurrency,
        }
    }

    fn report(&self, spent: &Spent, failed: bool) -> Report {
        let counts = self.checkpoint.counts();
        let stream = spent.stream.as_secs_f64();
        let observations_now = counts.observations - self.observations_before;
        let target = &self.inspected.target;
        Report {
            partition: self.options.partition.to_string(),
            target_table: format!("{}.{}", target.database, target.name),
            dry_run: self.options.dry_run,
            resumed: self.resumed,
            traces_loaded: self.checkpoint.traces(),
            observations_processed: counts.observations,
            events_inserted: counts.inserted,
            observations_without_trace: counts.without_trace,
            errors: u64::from(failed),
            retries: self.retries.repeated(),
            segments_total: self.checkpoint.segments.as_ref().map_or(0, Vec::len) as u64,
            segments_done: self.checkpoint.done.len() as u64,
            peak_rss_bytes: peak_resident_bytes(),
            store_bytes: spent.store_bytes,
            seconds: Seconds {
                load: spent.load.as_secs_f64(),
                stream,
                insert: spent.insert.as_secs_f64(),
                total: self.started.elapsed().as_secs_f64(),
            },
            observations_per_second: match stream > 0.0 {
                true => observations_now as f64 / stream,
                false => 0.0,
            },
        }
    }
}

fn store_failed(error: StoreError) -> Error {
    let error = WorkError::Store(error);
    Error::Failed(format!("{error}{}", error.advice()))
}

/// A day as `YYYY-MM-DD`.
fn date(day: Day) -> String {
    const EPOCH: i32 = 2_440_588; // Julian day of 1970-01-01
    time::Date::from_julian_day(EPOCH + i32::from(day))
        .map_or_else(|_| format!("day {day}"), |date| date.to_string())
}

/// Some days as `YYYY-MM-DD`, or `YYYY-MM-DD to YYYY-MM-DD`.
fn dates(days: &RangeInclusive<Day>) -> String {
    match days.len() {
        1 => date(*days.start()),
        _ => format!("{} to {}", date(*days.start()), date(*days.end())),
    }
}

/// A name no other run has.
fn new_run_id() -> String {
    format!("{:x}-{:x}", seconds_since_1970(), fastrand::u64(..))
}

fn seconds_since_1970() -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since_1970.as_secs()
}
