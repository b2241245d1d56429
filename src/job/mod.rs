//! The whole job for one partition, once it is inspected: plan, load traces, stream, report.

mod elsewhere;
mod experiments;
mod stream;
mod traces;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;

use crate::begin::{self, Begin};
use crate::buffer_pool::BufferPool;
use crate::checkpoint::{Checkpoint, MadeFor};
use crate::clickhouse::Connection;
use crate::error::{Error, WorkError, advice_on_files};
use crate::inspect::{Inspected, inspect};
use crate::mapping::Source;
use crate::memory::peak_resident_bytes;
use crate::options::Options;
use crate::progress::Display;
use crate::report::{self, Report, Seconds, TraceId};
use crate::retry::Retries;
use crate::send::SegmentCounts;
use crate::shutdown::Shutdown;
use crate::state_dir::StateDir;
use crate::trace_store::{Day, StoreError, TraceStore};

/// What all jobs of a process share.
pub struct Session {
    /// The way to ClickHouse; what it asks is asked once.
    pub connection: Connection,
    /// Where progress is shown.
    pub display: Display,
    /// Whether the process has been asked to end.
    pub shutdown: Shutdown,
}

impl Session {
    /// Listens to signals from now on, and makes the connection ready. Of the options, the
    /// partition plays no part.
    ///
    /// # Errors
    /// [`Error`] where the operating system does not let it, or TLS is not set up as it should be.
    pub fn begin(options: &Options) -> Result<Self, Error> {
        Ok(Self {
            display: Display::detect(options.quiet),
            shutdown: Shutdown::listen()
                .map_err(|error| Error::failed("the program cannot listen to signals", error))?,
            connection: Connection::new(options.connection.clone())
                .map_err(Error::Configuration)?,
        })
    }

    /// The tries of one job.
    pub fn retries(&self, options: &Options) -> Retries {
        Retries::new(
            options.max_retries,
            self.shutdown.clone(),
            self.display.clone(),
        )
    }

    /// Looks at server, tables and partition; an address that is wrong is told at once.
    ///
    /// # Errors
    /// [`Error::Configuration`] with what is wrong, or [`Error::Interrupted`].
    pub async fn inspect(&self, options: &Options, retries: &Retries) -> Result<Inspected, Error> {
        self.unless_interrupted(inspect(&self.connection, options, retries))
            .await
    }

    /// Looks at them when the server has answered before: it may be away for a moment.
    ///
    /// # Errors
    /// See [`Session::inspect`].
    pub async fn inspect_again(
        &self,
        options: &Options,
        retries: &Retries,
    ) -> Result<Inspected, Error> {
        let connection = self.connection.with_retries(retries);
        self.unless_interrupted(inspect(&connection, options, retries))
            .await
    }

    /// Does something that leaves nothing half done, until it is asked to end.
    ///
    /// # Errors
    /// Those of the work, or [`Error::Interrupted`].
    pub async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            outcome = work => outcome,
            signal = self.shutdown.requested() => Err(Error::interrupted(signal)),
        }
    }
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// What it did; what it had done before, where it was finished already.
    pub report: Report,
    /// Whether it is done.
    pub outcome: Result<(), Error>,
    /// Whether it was finished before, so that there was nothing to do.
    pub was_finished: bool,
}

/// Backfills one partition, in a state directory that is this process's own, and leaves the
/// report there. The time in total is counted from `started`.
///
/// # Errors
/// [`Error`] with a sentence for the operator and the exit code, where the work was not begun.
pub async fn run(
    session: &Session,
    options: Options,
    inspected: Inspected,
    retries: Retries,
    state: StateDir,
    started: Instant,
) -> Result<Ended, Error> {
    let display = session.display.clone();
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
        Begin::Over(checkpoint) => {
            display.note(begin::over(&checkpoint, state.path()));
            (*checkpoint, false)
        }
        Begin::Continue(checkpoint) => {
            describe(&options, &inspected, &display);
            display.note(format_args!(
                "going on with {}",
                begin::progress(&checkpoint)
            ));
            (*checkpoint, true)
        }
        Begin::Fresh => {
            state.clear()?;
            state.require_space(inspected.store_bytes())?;
            describe(&options, &inspected, &display);
            let now = seconds_since_1970();
            (Checkpoint::begin(made_for, new_run_id(), now), false)
        }
    };
    let was_finished = checkpoint.finished;
    let mut job = Job {
        before: Source::BOTH.map(|source| checkpoint.counts(source).observations),
        connection: session.connection.with_retries(&retries),
        inspected,
        state,
        checkpoint,
        resumed,
        display,
        shutdown: session.shutdown.clone(),
        retries,
        pool: options.budget.pool(),
        started,
        options,
    };
    let (report, outcome) = match was_finished {
        true => (job.report(&Spent::default(), false), Ok(())),
        false => job.work_and_report().await,
    };
    if job.options.dry_run {
        job.state.remove();
    }
    Ok(Ended {
        report,
        outcome,
        was_finished,
    })
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
    // What one has no place for, the other has not either.
    let first = options.sources().into_iter().next();
    let mapping = inspected.mapping_of(first.unwrap_or(Source::Observations));
    if !mapping.without_place.is_empty() {
        display.note_once(format!(
            "{} has no column for: {}{}",
            target.name,
            mapping.without_place.join(", "),
            match mapping.tags_in_metadata {
                true => " (tags go into the metadata, as trace_tags)",
                false => "",
            }
        ));
    }
    if !mapping.left_to_default.is_empty() {
        display.note_once(format!(
            "left to their defaults: {}",
            mapping.left_to_default.join(", ")
        ));
    }
}

struct Job {
    options: Options,
    connection: Connection,
    inspected: Inspected,
    state: StateDir,
    checkpoint: Checkpoint,
    resumed: bool,
    /// Rows of each source that were done before this process began.
    before: [u64; 2],
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
    /// On each source.
    stream: [Duration; 2],
    insert: Duration,
    store_bytes: u64,
}

impl Job {
    async fn work_and_report(&mut self) -> (Report, Result<(), Error>) {
        let mut spent = Spent::default();
        let outcome = self.work(&mut spent).await;
        let failed = matches!(outcome, Err(Error::Failed(_) | Error::Configuration(_)));
        let report = self.report(&spent, failed);
        let kept = match self.options.dry_run {
            true => Ok(()),
            false => report::publish(&report, &self.state.report()),
        };
        // What went wrong first is what the operator must know.
        (report, outcome.and(kept))
    }

    /// Both phases.
    async fn work(&mut self, spent: &mut Spent) -> Result<(), Error> {
        self.plan().await?;
        let store = Arc::new(self.open_store()?);
        let load_started = Instant::now();
        let loaded = self.load_traces(&store).await;
        let loaded = match loaded {
            Ok(()) => self.find_experiments(&store).await,
            Err(error) => Err(error),
        };
        spent.load = load_started.elapsed();
        spent.store_bytes = store.disk_bytes();
        loaded.map_err(|error| self.with_way_on(error))?;
        for source in self.options.sources() {
            let started = Instant::now();
            let destination = Arc::new(self.destination(source));
            let streamed = self.stream(source, &store, &destination).await;
            spent.stream[source as usize] = started.elapsed();
            spent.insert +=
                Duration::from_nanos(destination.insert_nanoseconds.load(Ordering::Relaxed));
            streamed.map_err(|error| self.with_way_on(error))?;
        }
        drop(store);
        self.checkpoint.finished = true;
        self.save().map_err(|error| self.with_way_on(error))?;
        if self.options.keep_traces {
            return Ok(());
        }
        self.state.remove_work_files()
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

    /// Writes the checkpoint, once what it says of the store outlasts a loss of power.
    fn save_with(&mut self, store: &TraceStore) -> Result<(), Error> {
        store.sync().map_err(store_failed)?;
        self.save()
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

    fn report(&self, spent: &Spent, failed: bool) -> Report {
        let [observations, root_spans] = Source::BOTH.map(|source| self.checkpoint.counts(source));
        let [stream, root_span_stream] = spent.stream.map(|time| time.as_secs_f64());
        let now = |counts: SegmentCounts, source: Source| {
            counts.observations - self.before[source as usize]
        };
        let target = &self.inspected.target;
        let elsewhere = &self.checkpoint.elsewhere;
        Report {
            partition: self.options.partition.to_string(),
            target_table: format!("{}.{}", target.database, target.name),
            dry_run: self.options.dry_run,
            resumed: self.resumed,
            traces_loaded: self.checkpoint.traces(),
            observations_processed: observations.observations,
            events_inserted: observations.inserted,
            observations_without_trace: observations.without_trace,
            traces_superseded: self.options.root_spans.then_some(root_spans.superseded),
            root_spans_inserted: self.options.root_spans.then_some(root_spans.inserted),
            spans_in_experiments: self
                .options
                .experiments
                .then_some(observations.in_experiments + root_spans.in_experiments),
            traces_found_elsewhere: elsewhere.found,
            traces_nowhere: elsewhere.asked - elsewhere.found.min(elsewhere.asked),
            traces_nowhere_listed: elsewhere
                .nowhere
                .iter()
                .map(|(project, trace)| TraceId::new(project, trace))
                .collect(),
            errors: u64::from(failed),
            retries: self.retries.repeated(),
            segments_total: self.checkpoint.segments.as_ref().map_or(0, Vec::len) as u64,
            segments_done: self.checkpoint.done.len() as u64,
            peak_rss_bytes: peak_resident_bytes(),
            store_bytes: spent.store_bytes,
            seconds: Seconds {
                load: spent.load.as_secs_f64(),
                stream,
                root_spans: root_span_stream,
                insert: spent.insert.as_secs_f64(),
                total: self.started.elapsed().as_secs_f64(),
            },
            observations_per_second: per_second(now(observations, Source::Observations), stream),
            root_spans_per_second: per_second(now(root_spans, Source::Traces), root_span_stream),
        }
    }
}

fn per_second(rows: u64, seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => rows as f64 / seconds,
        false => 0.0,
    }
}

fn store_failed(error: StoreError) -> Error {
    work_failed(WorkError::Store(error))
}

fn work_failed(error: WorkError) -> Error {
    Error::Failed(format!("{error}{}", error.advice()))
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
