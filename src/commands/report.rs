//! `report`: writes the HTML page about the runs in the state directory.

use std::path::{Path, PathBuf};

use super::partition_status::{PartitionStatus, State};
use super::run_summary::{Entry, State as Became};
use super::status::{directories, listed};
use crate::cli::options::require_outside;
use crate::error::Error;
use crate::page::{self, Month, Tone};
use crate::state::directory::PartitionDir;
use crate::state::finding::Finding;
use crate::state::history::History;
use crate::state::left_to_do::left_to_do;
use crate::state::report::{Report, publish_page, require_writable};

/// Writes a page about all runs in the state directories `roots` to `html`, newest month first.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if a directory does not exist, there are no runs, or the
/// file cannot be written.
pub(super) fn run(roots: &[PathBuf], html: &Path) -> Result<(), Error> {
    for root in roots {
        require_outside("--html", html, root)?;
    }
    let directories = directories(roots)?;
    if directories.is_empty() {
        return Err(Error::configuration(format!(
            "there are no runs in {}: give the right state directory with --state-dir",
            listed(roots)
        )));
    }
    require_writable(html, "--html")?;
    let months: Vec<Month> = directories.iter().rev().map(month_of).collect();
    publish_page(&page::html(&months)?, html)
}

/// Reads a month from its directory.
pub(super) fn month_of(directory: &PartitionDir) -> Month {
    let status = PartitionStatus::of(directory);
    let (state, tone) = in_words(status.state);
    let state = match status.dry_run {
        true => format!("{state} (dry run)"),
        false => state.to_owned(),
    };
    let history = History::read(&directory.history());
    let mut month = Month::new(directory.share.to_string(), state, tone, &history);
    month.is_done = status.state == State::Finished;
    let last_report = status.last_report.clone();
    let report: Option<Report> = last_report.and_then(|json| serde_json::from_value(json).ok());
    if let Some(report) = &report {
        month = month.with_report(report.clone());
    }
    if let Some(progress) = &status.progress {
        // The checkpoint is never older than the report.
        month.traces = progress.traces_loaded;
        month.events_of_observations = progress.events_inserted;
        month.root_spans = progress.root_spans_inserted;
        month.without_trace = progress.observations_without_trace;
        month.is_counted_in_part |= progress.written_by_earlier_attempts > 0;
        month.observations = month.observations.max(progress.observations_processed);
        month.segments = (progress.segments_done, progress.segments_total);
        month.written_at = progress.saved_at.0;
    }
    let (findings, unusable) = Finding::all(directory);
    month.findings = findings;
    let mut left = match report.filter(|_| month.is_done) {
        Some(report) => left_to_do(&report, month.written_at, month.last_said()),
        None => Vec::new(),
    };
    if status.state != State::Running {
        left.extend(status.error.or(status.next));
    }
    month.is_partly_unreadable = !unusable.is_empty();
    if unusable.is_empty() {
        left.extend(check(&month));
    }
    left.extend(unusable);
    month.left_to_do = left;
    month
}

/// What is left to do after the last check of a month, or because there was none.
fn check(month: &Month) -> Option<String> {
    let last = month.last_said();
    if let Some(error) = last.and_then(|last| last.error.as_ref()) {
        return last.map(|last| format!("{}: {error}", last.command));
    }
    let is_verified = last.is_some_and(|last| last.command == "verify");
    let partition = &month.partition;
    (month.is_done && !is_verified).then(|| {
        format!(
            "check it with `events-backfill verify --partition {partition}`, with the options of the run"
        )
    })
}

/// A dry run's month. Its directory is gone by now, so the entry has all there is.
pub(super) fn month_of_dry_run(entry: &Entry) -> Month {
    let (state, tone) = match entry.state {
        Became::Done | Became::AlreadyFinished => ("dry run: nothing was written", Tone::Good),
        Became::Interrupted => ("dry run, interrupted", Tone::Warning),
        Became::Failed => ("dry run, failed", Tone::Bad),
        Became::NotBegun => ("dry run, not started", Tone::Neutral),
    };
    let report = entry.report.clone();
    let mut month = Month::new(report.name(), state.to_owned(), tone, &entry.history);
    month.left_to_do.extend(report.ended_with.clone());
    match entry.state {
        Became::NotBegun => month,
        _ => month.with_report(report),
    }
}

fn in_words(state: State) -> (&'static str, Tone) {
    match state {
        State::Finished => ("finished", Tone::Good),
        State::Running => ("running", Tone::Neutral),
        State::Interrupted => ("interrupted", Tone::Warning),
        State::Failed => ("failed", Tone::Bad),
        State::NotBegun => ("not started", Tone::Neutral),
        State::LeftOver => ("killed", Tone::Warning),
        State::Damaged => ("damaged", Tone::Bad),
        State::Unreadable => ("unreadable", Tone::Bad),
    }
}
