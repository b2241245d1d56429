//! Runs the requested partitions one after another, newest first.
//!
//! With several, all are checked before the first starts: that they exist, that no other process works
//! on them, and that their state directories allow it.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::report as page_of_runs;
use super::run_summary::{Entry, State, Summary};
use super::state_dirs;
use crate::backfill::{self, Context, Ended};
use crate::cli::options::{Earlier, Options, Request};
use crate::cli::selection::{Selected, in_words};
use crate::error::{Advice, Error};
use crate::inspect::{Months, months};
use crate::page::{self, Month};
use crate::partition::Partition;
use crate::progress::words::{count, seconds};
use crate::session::Session;
use crate::state::checkpoint::{Checkpoint, RunIdentity};
use crate::state::directory::{PartitionDir, StateDir};
use crate::state::history::History;
use crate::state::report::{self, Report};
use crate::state::resume;

/// Backfills the requested partitions and prints the summary.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if a check fails before anything is written;
/// [`Kind::Failed`](crate::error::Kind) if a partition, or writing `--report` or `--html`, fails;
/// [`Kind::Interrupted`](crate::error::Kind) after a signal.
pub(crate) async fn run(request: Request) -> Result<(), Error> {
    let session = Session::begin(request.shared())?;
    let _serving = session.serve_metrics(request.shared()).await?;
    let _window = session.keep_window(request.shared());
    match request.selection.single() {
        Some(partition) => run_one(&session, request.job(partition)).await,
        None => run_several(session, &request).await,
    }
}

async fn run_one(session: &Session, mut options: Options) -> Result<(), Error> {
    let started = Instant::now();
    let retries = session.retries(&options);
    // First the lock: the previous process may still be writing its checkpoint.
    let taken = match options.is_unattended() {
        true => Some(state_dirs::take(session, &options).await?),
        false => None,
    };
    let directory = PartitionDir::new(&options.state_dir, options.share(), options.dry_run);
    let stored = Checkpoint::read(&directory.checkpoint());
    let begun = std::iter::once(resume::is_begun(&stored));
    resume::require_begun(begun, &directory.path, options.earlier)?;
    options.experiments_so_far = resume::experiments_so_far(&stored, &options);
    let inspected = session.inspect(&mut options, &retries).await?;
    let wanted = Wanted::of(&options)?;
    let state = match taken {
        Some(state) => state,
        None => state_dirs::take(session, &options).await?,
    };
    let quiet = options.quiet;
    let options_of_verify = options.options_of_verify.clone();
    let context = Context::new(session, options, inspected, retries, state, started);
    let ended = backfill::run(context).await?;
    let written = || {
        let month = || match ended.report.dry_run {
            true => {
                let state = State::after(&ended.outcome);
                let entry = Entry::new(state, ended.report.clone(), None);
                page_of_runs::month_of_dry_run(&entry.with_history(ended.history.clone()))
            }
            false => page_of_runs::month_of(&directory),
        };
        wanted.publish(&ended.report, || vec![month()])
    };
    if ended.was_finished {
        return written();
    }
    if ended.outcome.is_ok() {
        tell_done(session, &ended.report);
        if !ended.report.dry_run {
            session
                .display
                .note(how_to_check(&directory, &options_of_verify));
        }
    }
    if !quiet {
        // The work is done even if standard output is closed.
        let _ = writeln!(std::io::stdout().lock(), "\n{}", ended.report);
    }
    let written = written();
    // The first error is the one the operator must know.
    ended.outcome.and(written)
}

fn tell_done(session: &Session, report: &Report) {
    let events = match report.dry_run {
        true => "nothing was inserted".to_owned(),
        false => format!("{} events", count(report.all_events())),
    };
    session.display.note_done(format_args!(
        "partition {} is done: {events} in {}",
        report.name(),
        seconds(report.seconds.total)
    ));
}

/// What to do after a run: verify, with those of its options that decide what is compared.
fn how_to_check(directory: &PartitionDir, options: &str) -> String {
    let partition = directory.share.partition;
    if directory.cluster_shard().is_some() {
        // `--all-shards` has started this process with options of its own.
        return format!(
            "next: once all shards are done, check them with `events-backfill verify --partition \
             {partition} --all-shards`, with the options of the run"
        );
    }
    let when = match directory.share.shard {
        Some(_) => "once all shards are done, check the whole month",
        None => "check it",
    };
    format!("next: {when} with `events-backfill verify --partition {partition}{options}`")
}

/// The files requested with `--report` and `--html`.
struct Wanted {
    report: Option<PathBuf>,
    html: Option<PathBuf>,
}

impl Wanted {
    /// Takes them from the options, and checks now that they can be written.
    fn of(options: &Options) -> Result<Self, Error> {
        let (report, html) = (options.report.clone(), options.html.clone());
        for (flag, path) in [("--report", &report), ("--html", &html)] {
            if let Some(path) = path {
                report::require_writable(path, flag)?;
            }
        }
        if let (Some(report), Some(html)) = (&report, &html) {
            report::require_different((report, "--report"), (html, "--html"))?;
        }
        Ok(Self { report, html })
    }

    /// Writes both.
    fn publish(
        &self,
        summary: &impl Serialize,
        months: impl FnOnce() -> Vec<Month>,
    ) -> Result<(), Error> {
        let report = self.report.as_ref();
        let reported = report.map_or(Ok(()), |path| report::publish(summary, path));
        let html = self.html.as_ref();
        let shown = html.map_or(Ok(()), |path| {
            report::publish_page(&page::html(&months())?, path)
        });
        reported.and(shown)
    }
}

async fn run_several(session: Session, request: &Request) -> Result<(), Error> {
    let shared = request.shared();
    let started = Instant::now();
    let wanted = Wanted::of(shared)?;
    let (months, selected) = select(&session, request).await?;
    let waiting = prepare(&session, request, &selected, &months).await?;
    let rows = waiting.iter().map(|job| job.rows).sum();
    let session = Session {
        display: session.display.over_partitions(waiting.len(), rows),
        ..session
    };
    let run = Run {
        session: &session,
        keep_going: request.keep_going,
        earlier: shared.earlier,
        waiting,
        entries: Vec::new(),
        first_error: None,
    };
    let (entries, outcome) = run.go_through().await;
    let rehearsed = match shared.dry_run {
        true => entries.iter().map(page_of_runs::month_of_dry_run).collect(),
        false => Vec::new(),
    };
    session.display.end_partitions();
    let summary = Summary::new(entries, &selected.without_rows, started.elapsed());
    if !shared.quiet {
        // The work is done even if standard output is closed.
        let _ = writeln!(std::io::stdout().lock(), "\n{summary}");
    }
    let months = || match shared.dry_run {
        true => rehearsed,
        false => {
            let directory = |&partition| {
                let share = request.job(partition).share();
                PartitionDir::new(&shared.state_dir, share, false)
            };
            let directories = selected.partitions.iter().map(directory);
            directories
                .map(|directory| page_of_runs::month_of(&directory))
                .collect()
        }
    };
    let written = wanted.publish(&summary, months);
    outcome.and(written)
}

/// The existing months, and those of them to work on.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if a named month has no rows, or no selected one has;
/// other kinds if the server cannot be asked, or after a signal.
pub(super) async fn select(
    session: &Session,
    request: &Request,
) -> Result<(Months, Selected), Error> {
    let shared = request.shared();
    let retries = session.retries(shared);
    let months = session
        .unless_interrupted(months(&session.connection, shared, &retries))
        .await?;
    if !months.out_of_range.is_empty() {
        session.display.note(format_args!(
            "skipping partitions whose months are out of range: {}",
            months.out_of_range.join(", ")
        ));
    }
    let missing = |missing: &[Partition]| months.missing(&shared.database, missing);
    let there_are = months.rows.keys().copied().collect();
    let selected = request
        .selection
        .resolve(&there_are)
        .map_err(|named| missing(&named))?;
    if selected.partitions.is_empty() {
        return Err(match &*selected.without_rows {
            [] => Error::configuration(format!(
                "database {} has no rows that could become events: check CLICKHOUSE_DB",
                shared.database
            ))
            .about("CLICKHOUSE_DB"),
            asked_for => missing(asked_for),
        });
    }
    if !selected.without_rows.is_empty() {
        session.display.note(format_args!(
            "skipping months without rows: {}",
            in_words(&selected.without_rows)
        ));
    }
    Ok((months, selected))
}

/// A job that is ready to start.
struct Prepared {
    options: Options,
    /// Rows of observations in its parts.
    rows: u64,
    /// Its state directory, locked by this process.
    state: StateDir,
}

/// Locks the state directories of all partitions, and checks that each can be started or continued, or
/// is finished.
async fn prepare(
    session: &Session,
    request: &Request,
    selected: &Selected,
    months: &Months,
) -> Result<VecDeque<Prepared>, Error> {
    let mut newest = request.job(selected.partitions[0]);
    let begun = selected.partitions.iter().map(|&partition| {
        let options = request.job(partition);
        let directory = PartitionDir::new(&options.state_dir, options.share(), options.dry_run);
        resume::is_begun(&Checkpoint::read(&directory.checkpoint()))
    });
    resume::require_begun(begun, &newest.state_dir, newest.earlier)?;
    let retries = session.retries(&newest);
    // The tables are the same for all.
    let inspected = session.inspect(&mut newest, &retries).await?;
    let mut prepared = VecDeque::new();
    let identity = |options: &Options| RunIdentity::new(options, &inspected);
    let mut check = async |partition| {
        let mut options = request.job(partition);
        let state = state_dirs::take(session, &options).await?;
        let stored = Checkpoint::read(&state.checkpoint());
        // With several partitions, --resume starts those without a run.
        let is_there = resume::is_begun(&stored);
        if !is_there && options.earlier == Earlier::Resume {
            options.earlier = Earlier::Refuse;
        }
        options.experiments_so_far = resume::experiments_so_far(&stored, &options);
        options.settle(inspected.defaults);
        resume::decide(stored, &identity(&options), state.path(), &options)?;
        prepared.push_back(Prepared {
            rows: months.rows.get(&partition).copied().unwrap_or(0),
            options,
            state,
        });
        Ok(())
    };
    let mut checked = Ok(());
    for &partition in &selected.partitions {
        checked = check(partition).await;
        if checked.is_err() {
            break;
        }
    }
    if let Err(error) = checked {
        leave(prepared);
        return Err(error);
    }
    if newest.earlier == Earlier::Restart {
        // All at once: if the restart is interrupted and resumed, it must find no older state.
        prepared.iter().try_for_each(|job| {
            job.state.mark_restart()?;
            job.state.clear()
        })?;
    }
    Ok(prepared)
}

/// Cleans up jobs that did not start.
fn leave(jobs: impl IntoIterator<Item = Prepared>) {
    for job in jobs {
        if job.options.dry_run {
            job.state.remove();
        }
    }
}

/// A run over several partitions.
struct Run<'a> {
    session: &'a Session,
    keep_going: bool,
    earlier: Earlier,
    waiting: VecDeque<Prepared>,
    entries: Vec<Entry>,
    first_error: Option<Error>,
}

/// Whether to start the next partition.
enum Next {
    Go,
    Stop,
}

impl Run<'_> {
    /// Works on the partitions until all are done or one stops the run. Returns an entry for each.
    async fn go_through(mut self) -> (Vec<Entry>, Result<(), Error>) {
        while let Some(job) = self.waiting.pop_front() {
            if let Next::Stop = self.work_on(job).await {
                break;
            }
        }
        let not_begun = self.waiting.iter().map(|job| {
            let report = empty_report(&job.options);
            Entry::new(State::NotBegun, report, None)
        });
        self.entries.extend(not_begun);
        leave(std::mem::take(&mut self.waiting));
        let outcome = self.outcome();
        (self.entries, outcome)
    }

    async fn work_on(&mut self, job: Prepared) -> Next {
        let empty = empty_report(&job.options);
        let partition = job.options.partition;
        if let Some(signal) = self.session.shutdown.signal() {
            leave([job]);
            self.stop_before(signal, empty);
            return Next::Stop;
        }
        self.session.display.begin_partition(partition, job.rows);
        match self.run_job(job).await {
            Ok(ended) => self.record(partition, ended),
            Err((error, next)) => {
                if let Some(signal) = error.signal() {
                    self.stop_before(signal, empty);
                    return Next::Stop;
                }
                let next = self.next_after(&error, next);
                let report = Report {
                    ended_with: Some(error.to_string()),
                    ..empty
                };
                self.fail(partition, error, report, History::default());
                next
            }
        }
    }

    /// Inspects the tables and runs a job. An error comes with whether it would stop the next job too.
    async fn run_job(&self, mut job: Prepared) -> Result<Ended, (Error, Next)> {
        let session = self.session;
        let started = Instant::now();
        let retries = session.retries(&job.options);
        let inspected = match session.inspect_again(&mut job.options, &retries).await {
            Ok(inspected) => inspected,
            Err(error) => {
                leave([job]);
                return Err((error, Next::Stop));
            }
        };
        let options = job.options;
        let context = Context::new(session, options, inspected, retries, job.state, started);
        let ended = backfill::run(context).await;
        ended.map_err(|error| (error, Next::Go))
    }

    /// Records a signal that came before a job started.
    fn stop_before(&mut self, signal: u8, empty: Report) {
        let partition = format_args!("partition {}", empty.partition);
        let error = Error::interrupted_before(signal, partition);
        let way_on = match self.earlier {
            Earlier::ResumeOrStart => Advice::RunAgain { so_far: None },
            _ => Advice::Resume { so_far: None },
        };
        self.first_error = Some(error.with((!empty.dry_run).then_some(way_on)));
        self.entries.push(Entry::new(State::NotBegun, empty, None));
    }

    /// Records how a job ended.
    fn record(&mut self, partition: Partition, ended: Ended) -> Next {
        let report = ended.report;
        if let Err(error) = ended.outcome {
            let next = self.next_after(&error, Next::Go);
            self.fail(partition, error, report, ended.history);
            return next;
        }
        let state = match ended.was_finished {
            true => State::AlreadyFinished,
            false => {
                tell_done(self.session, &report);
                State::Done
            }
        };
        let entry = Entry::new(state, report, None);
        self.entries.push(entry.with_history(ended.history));
        Next::Go
    }

    /// Whether to continue after an error, where `next` says whether it would stop the next job too.
    fn next_after(&self, error: &Error, next: Next) -> Next {
        match self.keep_going && error.signal().is_none() {
            true => next,
            false => Next::Stop,
        }
    }

    fn fail(&mut self, partition: Partition, error: Error, report: Report, history: History) {
        let error = error.in_partition(partition);
        let state = State::after(&Err(error.clone()));
        if self.keep_going && !self.waiting.is_empty() && state == State::Failed {
            self.session.display.note(format_args!("failed: {error}"));
        }
        let entry = Entry::new(state, report, Some(error.to_string()));
        self.entries.push(entry.with_history(history));
        let is_signal = state == State::Interrupted;
        if is_signal || self.first_error.is_none() {
            self.first_error = Some(error);
        }
    }

    /// The error to exit with: the interruption if there was one, otherwise the first failure.
    fn outcome(&self) -> Result<(), Error> {
        let Some(error) = &self.first_error else {
            return Ok(());
        };
        let count = |state| self.entries.iter().filter(|e| e.state == state).count();
        let (failed, not_begun) = (count(State::Failed), count(State::NotBegun));
        let mut error = error.clone();
        if failed > 1 {
            error = error.and(format!("{failed} partitions failed"));
        }
        if not_begun > 0 {
            let partitions = match not_begun {
                1 => "partition was",
                _ => "partitions were",
            };
            error = error.and(format!("{not_begun} {partitions} not started"));
        }
        let nothing_was_done = self.entries.iter().all(|entry| !entry.has_worked());
        Err(match nothing_was_done {
            true => error,
            false => error.after_work(),
        })
    }
}

/// The report of a job that did not start.
fn empty_report(options: &Options) -> Report {
    Report {
        partition: options.partition.to_string(),
        shard: options.shard.map(|shard| shard.to_string()),
        target_table: options.target_table.clone().unwrap_or_default(),
        dry_run: options.dry_run,
        ..Report::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::partition::ShareOfMonth;

    #[test]
    fn the_advice_to_verify_can_be_pasted() {
        let partition = "202406".parse().unwrap();
        let advice = |root: &str, shard: Option<&str>| {
            let share = ShareOfMonth {
                partition,
                shard: shard.map(|shard| shard.parse().unwrap()),
            };
            let directory = PartitionDir::new(Path::new(root), share, false);
            how_to_check(&directory, " --target-table mine")
        };
        let command = "`events-backfill verify --partition 202406 --target-table mine`";
        assert_eq!(
            advice("/state", None),
            format!("next: check it with {command}")
        );
        assert_eq!(
            advice("/state", Some("2/3")),
            format!("next: once all shards are done, check the whole month with {command}")
        );
        assert!(advice("/state/shard-2", None).contains("--all-shards"));
    }
}
