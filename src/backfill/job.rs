//! The whole job for one inspected partition: segments, traces, rows, views.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanCount;

use super::context::Context;
use super::journal::Journal;
use super::load::dates;
use super::prepare::{Prepared, prepare};
use super::recorder::Recorder;
use super::run_report::{Spent, report};
use super::{known_rows, stream, target, views};
use crate::cli::options::{Earlier, Engine};
use crate::control::{self, Listening};
use crate::error::{Advice, Error, Kind};
use crate::inspect::segments::{self, Segment};
use crate::mapping::Source;
use crate::partition::{Day, seconds_since_1970};
use crate::progress::words::{first_of, plural};
use crate::state::checkpoint::{Checkpoint, RunIdentity, new_run_id};
use crate::state::history::History;
use crate::state::left_to_do::left_to_do;
use crate::state::report::{self as reports, Report};
use crate::state::resume::{self, Decision};
use crate::telemetry::Job;
use crate::throttle::{SpeedState, Told, Watched};
use crate::trace_store::TraceStore;

/// Columns named in a note about many.
const COLUMNS_NAMED: usize = 3;

/// The result of a job.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What it did, or had done if it was finished already.
    pub report: Report,
    /// Whether it succeeded.
    pub outcome: Result<(), Error>,
    /// Whether it was finished already, leaving nothing to do.
    pub was_finished: bool,
    /// Measurements over time.
    pub history: History,
}

/// Backfills one partition and stores the report in its state directory.
///
/// # Errors
/// [`Error`] with a sentence for the operator and the exit code, if the job never started.
pub(crate) async fn run(mut context: Context) -> Result<Ended, Error> {
    require_engine(&context)?;
    let (checkpoint, resumed) = begin(&context)?;
    context.resumed = resumed;
    let was_finished = checkpoint.finished;
    let _listening = listen(&context);
    let mut spent = Spent::after(&checkpoint);
    let mut journal = Journal::new(checkpoint, &context.state, context.options.dry_run);
    let (outcome, history) = match was_finished {
        true => (Ok(()), History::read(&context.state.history())),
        false => {
            let recorder = Recorder::begin(&context);
            let outcome = work(&context, &mut journal, &mut spent).await;
            (outcome, recorder.end(spent.store_bytes).await)
        }
    };
    let failed = matches!(&outcome, Err(error) if error.signal().is_none());
    let mut report = report(&context, journal.checkpoint(), &spent, failed);
    report.ended_with = outcome.as_ref().err().map(Error::to_string);
    if outcome.is_ok() && !was_finished {
        for sentence in left_to_do(&report, journal.checkpoint().saved_at, None) {
            context.display.note(sentence);
        }
    }
    let kept = match was_finished || context.options.dry_run {
        true => Ok(()),
        false => reports::keep(&report, &context.state.report()),
    };
    if context.options.dry_run {
        context.state.remove();
    }
    Ok(Ended {
        report,
        // The operator needs the first error.
        outcome: outcome.and(kept),
        was_finished,
        history,
    })
}

/// Accepts control commands, if possible; the job runs without them otherwise.
pub(super) fn listen(context: &Context) -> Option<Listening> {
    let display = context.display.clone();
    let tell = move |state: &SpeedState| {
        display.note(format_args!("changed by command: {state}"));
        state.show(&display);
    };
    let listening = control::listen(context.state.path(), context.throttle.clone(), tell);
    listening
        .map_err(|error| {
            context.display.note(format_args!(
                "this run cannot be paused or changed: cannot create a socket in {} ({error})",
                context.state.path().display()
            ));
        })
        .ok()
}

/// Refuses a target that the chosen engine cannot fill.
fn require_engine(context: &Context) -> Result<(), Error> {
    let not_as_sql = context.inspected.mapping.not_as_sql();
    match (context.options.engine, not_as_sql.first()) {
        (Engine::ClickHouse, Some(column)) => Err(Error::configuration(format!(
            "--engine clickhouse cannot fill column {column} of {} with JSON as the embedded engine does: \
             use --engine embedded",
            context.inspected.target.name
        ))),
        _ => Ok(()),
    }
}

/// Where to start, and whether another process started the job.
fn begin(context: &Context) -> Result<(Checkpoint, bool), Error> {
    let Context {
        options,
        inspected,
        state,
        display,
        ..
    } = context;
    let identity = RunIdentity::new(options, inspected);
    let stored = Checkpoint::read(&state.checkpoint());
    match resume::decide(stored, &identity, state.path(), options)? {
        Decision::AlreadyFinished(checkpoint) => {
            display.note(resume::over(options.share(), &checkpoint, state.path()));
            Ok((*checkpoint, false))
        }
        Decision::Continue(checkpoint) => {
            describe(context);
            display.note(format_args!(
                "resuming with {}",
                resume::progress(&checkpoint)
            ));
            Ok((*checkpoint, true))
        }
        Decision::Fresh => {
            if options.earlier == Earlier::Restart {
                state.mark_restart()?;
            }
            state.clear()?;
            state.require_space(inspected.store_bytes())?;
            describe(context);
            let checkpoint = Checkpoint::begin(identity, new_run_id(), seconds_since_1970());
            Ok((checkpoint, false))
        }
    }
}

/// Tells the operator what is about to happen.
fn describe(context: &Context) {
    let Context {
        options,
        inspected,
        display,
        ..
    } = context;
    let target = &inspected.target;
    let verb = if options.dry_run { "would go" } else { "go" };
    let (about, in_words) = match options.shard {
        Some(shard) => (
            "about ",
            format!(
                "{}, shard {shard} ({})",
                options.partition,
                dates(&context.days())
            ),
        ),
        None => ("", options.partition.to_string()),
    };
    display.note(format_args!(
        "ClickHouse {}: {}{} rows of {}.observations and {} of traces, partition {}, {verb} into \
         {}.{}",
        inspected.server.version,
        about,
        HumanCount(inspected.observation_rows),
        options.database,
        HumanCount(inspected.trace_rows),
        in_words,
        target.database,
        target.name,
    ));
    // Both sources lack the same columns.
    let first = options.subject.sources().into_iter().next();
    let mapping = inspected.mapping_of(first.unwrap_or(Source::Observations));
    if !mapping.without_place.is_empty() {
        display.note_once(format!(
            "{} has no column for {}{}",
            target.name,
            mapping.without_place.join(", "),
            match mapping.tags_in_metadata {
                true => " (tags are stored in the metadata, as trace_tags)",
                false => "",
            }
        ));
    }
    if !mapping.left_to_default.is_empty() {
        let columns = &mapping.left_to_default;
        let (have, are) = match columns.len() {
            1 => ("has", "is left at its default"),
            _ => ("have", "are left at their defaults"),
        };
        display.note_once(format!(
            "{} of {} {have} no source in observations or traces and {are}: {}",
            plural(columns.len() as u64, "column"),
            target.name,
            first_of(columns, COLUMNS_NAMED)
        ));
    }
}

/// All phases.
async fn work(context: &Context, journal: &mut Journal, spent: &mut Spent) -> Result<(), Error> {
    // Before hours of loading; `look` asks once more, since two runs may have begun together. Of several
    // servers one may be away, and waiting for it once is enough.
    if context.connection.places() == 1 {
        target::require_no_other(context, journal).await?;
    }
    let segments = plan(context, journal).await?;
    let store = Arc::new(open_store(context, journal, segments)?);
    let outcome = with_store(context, journal, &store, spent).await;
    spent.store_bytes = store.disk_bytes();
    outcome.map_err(|error| with_way_on(context, journal, error))?;
    drop(store);
    let finished = journal.commit(|checkpoint| checkpoint.finished = true);
    finished.map_err(|error| with_way_on(context, journal, error))?;
    if context.options.keep_traces {
        return Ok(());
    }
    context.state.remove_work_files()
}

/// Makes the segments, unless the checkpoint has them.
async fn plan(context: &Context, journal: &Journal) -> Result<Option<Vec<Segment>>, Error> {
    let sources = context.options.subject.sources().into_iter();
    let partitions: Vec<_> = sources
        .map(|source| context.inspected.partition(source))
        .collect();
    let rows = context.options.segment_rows;
    if let Some(segments) = &journal.checkpoint().segments {
        if let Some(note) = segments::not_as_asked(segments, &partitions, rows) {
            context.display.note(note);
        }
        return Ok(None);
    }
    let plan = async {
        let segments = segments::make(&context.connection, &partitions, rows).await;
        segments.map_err(|error| Error::caused("cannot divide the partition into segments", error))
    };
    let segments = context.unless_interrupted(plan).await?;
    if let Some(note) = segments::larger_than_asked(&segments, &partitions, rows) {
        context.display.note(note);
    }
    Ok(Some(segments))
}

/// Reopens an earlier process's store, or creates one and commits it to the checkpoint.
fn open_store(
    context: &Context,
    journal: &mut Journal,
    segments: Option<Vec<Segment>>,
) -> Result<TraceStore, Error> {
    let path = context.state.trace_store();
    let cache_bytes = context.options.budget.cache_bytes;
    let run_id = journal.checkpoint().run_id.clone();
    if context.resumed {
        let days: Vec<Day> = journal.checkpoint().days.keys().copied().collect();
        let store = TraceStore::reopen(&path, cache_bytes, &run_id, &days);
        return store.map_err(|error| match Error::from(error) {
            error if error.has_advice() => error,
            // Only a full disk leaves the store intact. After any other error it is damaged.
            error => error.with(Advice::Restart),
        });
    }
    let store = TraceStore::create(&path, cache_bytes, &run_id)?;
    journal.commit(|checkpoint| checkpoint.segments = segments)?;
    Ok(store)
}

/// All phases that need the store.
async fn with_store(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
    spent: &mut Spent,
) -> Result<(), Error> {
    let _at_work = context.telemetry.begin(Job {
        partition: context.options.partition.to_string(),
        target: {
            let target = &context.inspected.target;
            format!("{}.{}", target.database, target.name)
        },
        segments: journal.checkpoint().segments.as_ref().map_or(0, Vec::len) as u64,
        segments_before: journal.checkpoint().done.len() as u64,
        store: Arc::clone(store),
    });
    let started = Instant::now();
    let loading = context.telemetry.phase("load");
    let prepared = prepare(context, journal, store).await;
    drop(loading);
    spent.load = started.elapsed();
    let mut prepared = prepared?;
    for source in context.options.subject.sources() {
        write_source(context, journal, source, store, Some(&prepared), spent).await?;
        // Its room may be needed.
        prepared.keys = None;
    }
    views::level(context, journal.checkpoint(), store).await?;
    prepared.changes.reload().await?;
    journal.commit(|_| {})?;
    spent.rows_to_merge = views::count_rows_to_merge(context, journal.checkpoint()).await?;
    Ok(())
}

/// Writes the events of a source.
///
/// # Errors
/// [`Error`] if reading, enriching or writing fails, or on a signal.
pub(super) async fn write_source(
    context: &Context,
    journal: &mut Journal,
    source: Source,
    store: &Arc<TraceStore>,
    prepared: Option<&Prepared>,
    spent: &mut Spent,
) -> Result<(), Error> {
    let started = Instant::now();
    let waited_before = context.throttle.insert_seconds();
    if source == Source::Traces {
        known_rows::read_roots(context, journal, store).await?;
    }
    let run_id = &journal.checkpoint().run_id;
    let destination = Arc::new(stream::destination(context, run_id, source));
    let _streaming = context.telemetry.phase(stream::name_of(source));
    let watching = context.throttle.watch(watched(context));
    let streamed = stream::stream(context, journal, source, store, &destination, prepared).await;
    drop(watching);
    context.throttle.state().show(&context.display);
    spent.stream[source as usize] = started.elapsed();
    let waited = context.throttle.insert_seconds() - waited_before;
    spent.insert += Duration::from_secs_f64(waited.max(0.0));
    streamed
}

/// What the throttle watches while events are written.
fn watched(context: &Context) -> Watched {
    let (display, throttle) = (context.display.clone(), context.throttle.clone());
    Watched {
        connection: context.connection.without_retries(),
        tables: context.inspected.written.clone(),
        server_memory: context.inspected.server.memory,
        tell: Box::new(move |told| {
            let state = throttle.state();
            match (told, state.why_slow()) {
                (Told::Slower { is_news: true }, Some(why)) => display.note(why),
                (Told::Slower { .. }, _) => {}
                (Told::FullSpeed, _) => display.note("back at full speed"),
                (Told::LeftOut(what), _) => display.note_once(what),
            }
            state.show(&display);
        }),
    }
}

/// Adds how to continue to an error that left something to continue.
pub(super) fn with_way_on(context: &Context, journal: &Journal, error: Error) -> Error {
    if context.options.dry_run || error.kind() == Kind::Configuration {
        return error;
    }
    let so_far = Some(resume::progress(journal.checkpoint()));
    error.with(match context.options.earlier {
        Earlier::ResumeOrStart => Advice::RunAgain { so_far },
        _ => Advice::Resume { so_far },
    })
}
