//! The whole job for one partition, once it is inspected: plan, load traces, stream, report.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::HumanCount;

use super::error::WorkError;
use super::load::trace_changes::TraceChanges;
use super::pipeline::send::Destination;
use crate::cli::options::Options;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::mapping::Source;
use crate::memory::buffer_pool::BufferPool;
use crate::memory::peak_resident_bytes;
use crate::partition::{Day, seconds_since_1970};
use crate::progress::{Display, words};
use crate::session::Session;
use crate::shutdown::Shutdown;
use crate::state::checkpoint::{Checkpoint, RunIdentity, new_run_id};
use crate::state::counts::SegmentCounts;
use crate::state::directory::StateDir;
use crate::state::files::advice_on_files;
use crate::state::report::{self, Report, Seconds, TraceId};
use crate::state::resume::{self, Decision};
use crate::trace_store::{StoreError, TraceStore};

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Ended {
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
pub(crate) async fn run(
    session: &Session,
    options: Options,
    inspected: Inspected,
    retries: Retries,
    state: StateDir,
    started: Instant,
) -> Result<Ended, Error> {
    let display = session.display.clone();
    let identity = RunIdentity::new(&options, &inspected);
    let stored = Checkpoint::read(&state.checkpoint());
    let begin = resume::decide(stored, &identity, state.path(), &options)?;
    let (checkpoint, resumed) = match begin {
        Decision::AlreadyFinished(checkpoint) => {
            display.note(resume::over(&checkpoint, state.path()));
            (*checkpoint, false)
        }
        Decision::Continue(checkpoint) => {
            describe(&options, &inspected, &display);
            display.note(format_args!(
                "going on with {}",
                resume::progress(&checkpoint)
            ));
            (*checkpoint, true)
        }
        Decision::Fresh => {
            if options.restart {
                state.mark_restart()?;
            }
            state.clear()?;
            state.require_space(inspected.store_bytes())?;
            describe(&options, &inspected, &display);
            let now = seconds_since_1970();
            let checkpoint = Checkpoint {
                with_experiments: options.experiments,
                ..Checkpoint::begin(identity, new_run_id(), now)
            };
            (checkpoint, false)
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
        changes: Arc::default(),
        rows_to_merge: None,
        is_repair: false,
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

/// The work for one partition, and what is known of it.
pub(super) struct Job {
    pub(super) options: Options,
    pub(super) connection: Connection,
    pub(super) inspected: Inspected,
    pub(super) state: StateDir,
    pub(super) checkpoint: Checkpoint,
    pub(super) resumed: bool,
    /// Rows of each source that were done before this process began.
    pub(super) before: [u64; 2],
    pub(super) display: Display,
    pub(super) shutdown: Shutdown,
    pub(super) retries: Retries,
    pub(super) pool: BufferPool,
    pub(super) started: Instant,
    /// What loads traces again, once the store is there.
    pub(super) changes: Arc<OnceLock<TraceChanges>>,
    /// Rows that wait to be merged, where all were written again.
    pub(super) rows_to_merge: Option<u64>,
    /// Whether only some rows are wanted, which the store names.
    pub(super) is_repair: bool,
}

/// Where the time of this process went, and what the store took.
#[derive(Debug, Default)]
pub(super) struct Spent {
    pub(super) load: Duration,
    /// On each source.
    pub(super) stream: [Duration; 2],
    pub(super) insert: Duration,
    pub(super) store_bytes: u64,
}

impl Job {
    async fn work_and_report(&mut self) -> (Report, Result<(), Error>) {
        let mut spent = Spent::default();
        let outcome = self.work(&mut spent).await;
        let failed = matches!(outcome, Err(Error::Failed(_) | Error::Configuration(_)));
        let report = self.report(&spent, failed);
        let kept = match self.options.dry_run {
            true => Ok(()),
            false => report::keep(&report, &self.state.report()),
        };
        // What went wrong first is what the operator must know.
        (report, outcome.and(kept))
    }

    /// All phases.
    async fn work(&mut self, spent: &mut Spent) -> Result<(), Error> {
        self.plan().await?;
        let store = Arc::new(self.open_store()?);
        let load_started = Instant::now();
        let prepared = self.prepare(&store).await;
        spent.load = load_started.elapsed();
        spent.store_bytes = store.disk_bytes();
        prepared.map_err(|error| self.with_way_on(error))?;
        for source in self.options.sources() {
            let started = Instant::now();
            let destination = Arc::new(self.destination(source));
            let streamed = self.stream_source(source, &store, &destination).await;
            spent.stream[source as usize] = started.elapsed();
            spent.insert +=
                Duration::from_nanos(destination.insert_nanoseconds.load(Ordering::Relaxed));
            streamed.map_err(|error| self.with_way_on(error))?;
        }
        let settled = self.settle(&store).await;
        settled.map_err(|error| self.with_way_on(error))?;
        drop(store);
        self.checkpoint.finished = true;
        let saved = self.save();
        // It holds the store open.
        self.changes = Arc::default();
        saved.map_err(|error| self.with_way_on(error))?;
        if self.options.keep_traces {
            return Ok(());
        }
        self.state.remove_work_files()
    }

    /// Everything that has to be known before rows are read.
    async fn prepare(&mut self, store: &Arc<TraceStore>) -> Result<(), Error> {
        self.load_traces(store).await?;
        self.look_at_target().await?;
        self.find_experiments(store).await?;
        self.read_target(store).await?;
        self.scan_versions(store).await?;
        let changes = self.trace_changes(store);
        if self.resumed {
            changes.reload().await?;
        }
        // It is empty: this is the only place that fills it.
        let _ = self.changes.set(changes);
        Ok(())
    }

    pub(super) async fn stream_source(
        &mut self,
        source: Source,
        store: &Arc<TraceStore>,
        destination: &Arc<Destination>,
    ) -> Result<(), Error> {
        if source == Source::Traces {
            self.read_roots(store).await?;
        }
        self.stream(source, store, destination).await
    }

    /// What is to be done once all rows are written.
    async fn settle(&mut self, store: &Arc<TraceStore>) -> Result<(), Error> {
        self.level_views(store).await?;
        if let Some(changes) = Arc::clone(&self.changes).get() {
            changes.reload().await?;
        }
        self.rows_to_merge = self.count_rows_to_merge().await?;
        self.tell_what_is_left();
        Ok(())
    }

    /// Says what the operator may want to do about what the run has left.
    fn tell_what_is_left(&self) {
        let partition = self.options.partition;
        let counts = Source::BOTH.map(|source| self.checkpoint.counts(source).left_out);
        let left: u64 = counts.iter().map(|counts| counts.live_path).sum();
        if left > 0 && !self.options.dry_run {
            self.display.note(format_args!(
                "{} rows are left to Langfuse: `events-backfill verify --partition {partition}`, an \
                 hour from now, says whether it has written them",
                HumanCount(left)
            ));
        }
        let changed = self.counts_of_changes().1;
        if changed > 0 && !self.options.dry_run {
            self.display.note(format_args!(
                "{} traces changed after events were written: `events-backfill repair --partition \
                 {partition} --optimize` brings their events up to date",
                HumanCount(changed)
            ));
        }
        if let Some(rows) = self.rows_to_merge.filter(|&rows| rows > 0) {
            self.display.note(format_args!(
                "{} rows stand twice until ClickHouse merges them, and v4 counts both: \
                 `events-backfill repair --partition {partition} --optimize` merges them now",
                HumanCount(rows)
            ));
        }
    }

    /// From now on what changes may have been written already.
    pub(super) fn has_written(&self) {
        if let Some(changes) = self.changes.get() {
            changes.has_written.store(true, Ordering::Relaxed);
        }
    }

    /// Traces that were loaded again, and those that changed after events were written.
    fn counts_of_changes(&self) -> (u64, u64) {
        match self.changes.get() {
            Some(changes) => (
                changes.counts.reloaded.load(Ordering::Relaxed),
                changes.counts.after_writing.load(Ordering::Relaxed),
            ),
            None => (
                self.checkpoint.traces_reloaded,
                self.checkpoint.traces_changed,
            ),
        }
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
    pub(super) fn save_with(&mut self, store: &TraceStore) -> Result<(), Error> {
        store.sync().map_err(store_failed)?;
        self.save()
    }

    /// Writes the checkpoint.
    pub(super) fn save(&mut self) -> Result<(), Error> {
        self.checkpoint.saved_at = seconds_since_1970();
        (
            self.checkpoint.traces_reloaded,
            self.checkpoint.traces_changed,
        ) = self.counts_of_changes();
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
    pub(super) fn with_way_on(&self, error: Error) -> Error {
        if self.options.dry_run {
            return error;
        }
        let way_on = format!(
            "; {} so far: continue with --resume",
            resume::progress(&self.checkpoint)
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

    pub(super) fn report(&self, spent: &Spent, failed: bool) -> Report {
        let [observations, root_spans] = Source::BOTH.map(|source| self.checkpoint.counts(source));
        let [stream, root_span_stream] = spent.stream.map(|time| time.as_secs_f64());
        let now = |counts: SegmentCounts, source: Source| {
            counts.observations - self.before[source as usize]
        };
        let target = &self.inspected.target;
        let target_state = self.checkpoint.target.as_ref();
        let (reloaded, changed) = self.counts_of_changes();
        let elsewhere = &self.checkpoint.elsewhere;
        Report {
            partition: self.options.partition.to_string(),
            target_table: format!("{}.{}", target.database, target.name),
            dry_run: self.options.dry_run,
            resumed: self.resumed,
            traces_loaded: self.checkpoint.traces(),
            observations_processed: observations.observations
                + observations.left_out.live
                + observations.left_out.already_there
                + observations.left_out.live_path,
            events_inserted: observations.inserted,
            observations_without_trace: observations.without_trace,
            traces_superseded: self
                .options
                .root_spans
                .then_some(root_spans.superseded + root_spans.left_out.superseded),
            root_spans_inserted: self.options.root_spans.then_some(root_spans.inserted),
            spans_in_experiments: self
                .options
                .experiments
                .then_some(observations.in_experiments + root_spans.in_experiments),
            observations_superseded: observations.left_out.superseded,
            left_to_live_rows: observations.left_out.live + root_spans.left_out.live,
            root_spans_left_to_live_roots: root_spans.left_out.live_root,
            root_spans_left_to_observations: root_spans.left_out.root_observation,
            items_left_to_live_spans: self
                .checkpoint
                .experiments
                .map_or(0, |found| found.items_left_to_live_spans),
            already_there: observations.left_out.already_there + root_spans.left_out.already_there,
            left_to_live_path: observations.left_out.live_path + root_spans.left_out.live_path,
            until: target_state
                .and_then(|target| target.until)
                .map(words::moment),
            traces_reloaded: reloaded,
            traces_changed_after_writing: changed,
            rows_to_merge: self.rows_to_merge,
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

pub(super) fn store_failed(error: StoreError) -> Error {
    work_failed(WorkError::Store(error))
}

pub(super) fn work_failed(error: WorkError) -> Error {
    Error::Failed(format!("{error}{}", error.advice()))
}
