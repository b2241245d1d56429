//! The page about runs, made of what they keep in the state directory.

use std::path::Path;

use super::status::{PartitionStatus, State, unreadable};
use crate::backfill::Ended;
use crate::cli::options::require_outside;
use crate::error::Error;
use crate::page::{self, Month, Tone};
use crate::state::directory::PartitionDir;
use crate::state::finding::Finding;
use crate::state::history::History;
use crate::state::left_to_do::left_to_do;
use crate::state::report::{Report, publish_page, require_writable};

/// Writes a page about all runs in the state directory `root` to `html`, the newest month first.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) where there is no such directory, or nothing in it, or the
/// page cannot be written; [`Kind::Failed`](crate::error::Kind) where what is kept is not to be read.
pub(super) fn run(root: &Path, html: &Path) -> Result<(), Error> {
    require_outside("--html", html, root)?;
    let directories = PartitionDir::all(root).map_err(|error| unreadable(root, &error))?;
    if directories.is_empty() {
        return Err(Error::configuration(format!(
            "there are no runs in {}: name the directory of the runs with --state-dir",
            root.display()
        )));
    }
    require_writable(html, "--html")?;
    let months = directories.iter().rev().map(month_of);
    let months = months.collect::<Result<Vec<_>, _>>()?;
    publish_page(&page::html(&months)?, html)
}

/// A month, from its directory.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) where something that is kept is not to be read.
pub(super) fn month_of(directory: &PartitionDir) -> Result<Month, Error> {
    let status = PartitionStatus::of(directory);
    let (state, tone) = in_words(status.state);
    let state = match status.dry_run {
        true => format!("{state} (dry run)"),
        false => state.to_owned(),
    };
    let history = History::read(&directory.history());
    let mut month = Month::new(status.partition.clone(), state, tone, &history);
    let last_report = status.last_report.clone();
    let report: Option<Report> = last_report.and_then(|json| serde_json::from_value(json).ok());
    if let Some(report) = report {
        if status.state == State::Finished {
            month.left_to_do = left_to_do(&report);
        }
        month = month.with_report(report);
    }
    if let Some(progress) = &status.progress {
        // The checkpoint is at least as new as the report.
        month.traces = progress.traces_loaded;
        month.events_of_observations = progress.events_inserted;
        month.root_spans = progress.root_spans_inserted;
        month.without_trace = progress.observations_without_trace;
        month.observations = month.observations.max(progress.observations_processed);
        month.segments = (progress.segments_done, progress.segments_total);
        month.written_at = progress.saved_at.0;
    }
    month.findings = Finding::all(directory)?;
    if status.state != State::Running {
        month.left_to_do.extend(status.error.or(status.next));
    }
    month.left_to_do.extend(check(&month, status.state));
    Ok(month)
}

/// What to do about the check of a month.
fn check(month: &Month, state: State) -> Option<String> {
    let partition = &month.partition;
    match (state, month.verified()) {
        (State::Finished, None) => Some(format!(
            "`events-backfill verify --partition {partition}` checks it"
        )),
        (_, Some(Err(error))) => Some(error.to_owned()),
        _ => None,
    }
}

/// A dry run, which has removed its directory.
pub(super) fn month_of_dry_run(ended: &Ended) -> Month {
    let report = ended.report.clone();
    let (state, tone) = match &ended.outcome {
        Ok(()) => ("dry run: nothing was written", Tone::Good),
        Err(error) if error.signal().is_some() => ("dry run, interrupted", Tone::Warning),
        Err(_) => ("dry run, failed", Tone::Bad),
    };
    let partition = report.partition.clone();
    let mut month = Month::new(partition, state.to_owned(), tone, &ended.history);
    let error = ended.outcome.as_ref().err();
    month.left_to_do.extend(error.map(Error::to_string));
    month.with_report(report)
}

fn in_words(state: State) -> (&'static str, Tone) {
    match state {
        State::Finished => ("finished", Tone::Good),
        State::Running => ("running", Tone::Neutral),
        State::Interrupted => ("interrupted", Tone::Warning),
        State::Failed => ("failed", Tone::Bad),
        State::NotBegun => ("not begun", Tone::Neutral),
        State::LeftOver => ("left over", Tone::Warning),
        State::Damaged => ("damaged", Tone::Bad),
        State::Unreadable => ("unreadable", Tone::Bad),
    }
}
