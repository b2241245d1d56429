//! How far one run is: read from what it keeps in its state directory, without it noticing.

use std::path::Path;

use indicatif::HumanCount;
use serde::Serialize;

use crate::control;
use crate::mapping::Source;
use crate::partition::ShareOfMonth;
use crate::progress::moment::Moment;
use crate::state::checkpoint::{Checkpoint, CheckpointError};
use crate::state::directory::{Holder, PartitionDir};
use crate::throttle::SpeedState;
use crate::trace_store;

/// How a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Everything is done.
    Finished,
    /// A process is at it.
    Running,
    /// It ended before it was done, without an error of its own, and can be continued.
    Interrupted,
    /// Its last process gave up, and it can be continued.
    Failed,
    /// There is a directory, and nothing that could be continued.
    NotBegun,
    /// A dry run ended without removing its directory.
    LeftOver,
    /// The checkpoint is not what was written.
    Damaged,
    /// The checkpoint cannot be read, by this user or by this version of the program.
    Unreadable,
}

/// What is known of one partition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PartitionStatus {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// Which shard's days of it, as `3/8`; all days where there is none.
    pub shard: Option<String>,
    /// Whether it is a dry run, which keeps no checkpoint.
    pub dry_run: bool,
    /// How the run is.
    pub state: State,
    /// Number of the process that is at it, where it is known.
    pub process: Option<u32>,
    /// How fast it goes, where a process is at it and tells.
    pub speed: Option<SpeedState>,
    /// What the checkpoint says, where there is one.
    pub progress: Option<Progress>,
    /// The trace store on disk, in bytes.
    pub store_bytes: u64,
    /// What to do next, or to know.
    pub next: Option<String>,
    /// Why the checkpoint cannot be used, and what to do.
    pub error: Option<String>,
    /// The summary of the last process that ended, where there is one.
    pub last_report: Option<serde_json::Value>,
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    /// When the run began.
    pub begun_at: Moment,
    /// When the checkpoint was written.
    pub saved_at: Moment,
    /// Whether all traces are loaded.
    pub is_loaded: bool,
    /// Days whose traces are in the store.
    pub days_loaded: u64,
    /// Days whose traces are to be loaded: none where there are no traces.
    pub days_total: u64,
    /// Traces in the store.
    pub traces_loaded: u64,
    /// Whether the spans of dataset runs are looked for now.
    pub awaits_experiments: bool,
    /// Segments that are done, but for what waits.
    pub segments_done: u64,
    /// Segments of the plan.
    pub segments_total: u64,
    /// Observations of these segments that wait for their traces to be looked for in
    /// other months.
    pub observations_waiting: u64,
    /// Observations that are done.
    pub observations_processed: u64,
    /// Of these, rows the server acknowledged.
    pub events_inserted: u64,
    /// Root spans the server acknowledged.
    pub root_spans_inserted: u64,
    /// Of the observations, those whose trace was not found.
    pub observations_without_trace: u64,
}

impl PartitionStatus {
    /// Looks at one directory.
    pub(crate) fn of(directory: &PartitionDir) -> Self {
        // First the lock: a run that ends meanwhile has left a finished checkpoint
        // then. The other way round it would look interrupted.
        let holder = directory.holder();
        let checkpoint = Checkpoint::read(&directory.checkpoint());
        let last_report = last_report(directory);
        let has_failed = last_report
            .as_ref()
            .is_some_and(|report| report["errors"].as_u64() > Some(0))
            && is_newer(&directory.report(), &directory.checkpoint());
        let state = state(&checkpoint, holder, directory.dry_run, has_failed);
        let (checkpoint, error) = match checkpoint {
            Ok(checkpoint) => (checkpoint, None),
            Err(error) => (None, Some(unusable(directory, &error))),
        };
        let progress = checkpoint.map(|checkpoint| Progress::of(&checkpoint, directory.share));
        let speed = match state {
            State::Running => control::ask(&directory.path, &control::Command::State).ok(),
            _ => None,
        };
        let next = match (state, ended_with(last_report.as_ref())) {
            (State::Failed, Some(error)) => Some(format!("its last process failed: {error}")),
            _ => next(state, directory, holder, progress.as_ref()),
        };
        Self {
            next: match (next, &speed) {
                (Some(next), Some(speed)) => Some(format!("{next}; {speed}")),
                (next, _) => next,
            },
            speed,
            partition: directory.share.partition.to_string(),
            shard: directory.share.shard.map(|shard| shard.to_string()),
            dry_run: directory.dry_run,
            state,
            process: holder.and_then(|holder| holder.process),
            progress,
            store_bytes: trace_store::disk_bytes(&directory.trace_store()),
            error,
            last_report,
        }
    }
}

fn last_report(directory: &PartitionDir) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(directory.report()).ok()?).ok()
}

/// What the last process ended with, as its report has it.
fn ended_with(report: Option<&serde_json::Value>) -> Option<&str> {
    report?.get("ended_with")?.as_str()
}

/// Whether the report is of the process that has written the checkpoint: one that is
/// killed leaves none.
fn is_newer(report: &Path, checkpoint: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified());
    match (changed(report), changed(checkpoint)) {
        (Ok(report), Ok(checkpoint)) => report >= checkpoint,
        _ => false,
    }
}

fn state(
    checkpoint: &Result<Option<Checkpoint>, CheckpointError>,
    holder: Option<Holder>,
    dry_run: bool,
    has_failed: bool,
) -> State {
    match checkpoint {
        Err(CheckpointError::Damaged(_)) => State::Damaged,
        Err(_) => State::Unreadable,
        Ok(Some(checkpoint)) if checkpoint.finished => State::Finished,
        _ if holder.is_some() => State::Running,
        Ok(Some(_)) if has_failed => State::Failed,
        Ok(Some(_)) => State::Interrupted,
        Ok(None) if dry_run => State::LeftOver,
        Ok(None) => State::NotBegun,
    }
}

fn unusable(directory: &PartitionDir, error: &CheckpointError) -> String {
    let advice = match error {
        CheckpointError::File(_) => "look at it as the user who runs the backfill",
        CheckpointError::Damaged(_) => "--restart discards it and starts over",
        CheckpointError::Version { .. } => {
            "use the version that wrote it, or discard it and start over with --restart"
        }
    };
    format!(
        "the checkpoint {} of partition {} cannot be used: {error}; {advice}",
        directory.checkpoint().display(),
        directory.share
    )
}

/// What to do next, or to know, in words.
fn next(
    state: State,
    directory: &PartitionDir,
    holder: Option<Holder>,
    progress: Option<&Progress>,
) -> Option<String> {
    let waiting = progress
        .map(|progress| progress.observations_waiting)
        .filter(|&waiting| waiting > 0)
        .map_or_else(String::new, |waiting| {
            format!(
                "; {} observations wait for traces of other months",
                HumanCount(waiting)
            )
        });
    Some(match (state, holder) {
        (State::Finished, _) => return None,
        (State::Running, Some(holder)) if directory.dry_run => {
            format!("{holder} tries it, and inserts nothing")
        }
        (State::Running, Some(holder)) if progress.is_none() => {
            format!("{holder} has it, and has saved nothing yet: it waits for its turn, or begins")
        }
        (State::Running, Some(holder)) => format!("{holder} is at it{waiting}"),
        (State::Running, None) => return None,
        (State::Interrupted, _) => {
            format!("run it again as before, with --resume, to continue it{waiting}")
        }
        (State::Failed, _) => format!(
            "see what its last process said; then run it again, with --resume, to continue it{waiting}"
        ),
        (State::NotBegun, _) => {
            "nothing is saved yet: run it again as before, with --resume if there are others"
                .to_owned()
        }
        (State::LeftOver, _) => format!(
            "a dry run was killed: it can be run again, and {} can be removed",
            directory.path.display()
        ),
        (State::Damaged, _) => "run it again with --restart, to start over".to_owned(),
        (State::Unreadable, _) => "see the error below".to_owned(),
    })
}

impl Progress {
    fn of(checkpoint: &Checkpoint, share: ShareOfMonth) -> Self {
        let [observations, root_spans] = Source::BOTH.map(|source| checkpoint.counts(source));
        let is_loaded = checkpoint.superseded.is_some();
        let segments_total = checkpoint.segments.as_ref().map_or(0, Vec::len);
        let margin = checkpoint.identity.subject.trace_margin_days;
        Self {
            begun_at: Moment(checkpoint.started_at),
            saved_at: Moment(checkpoint.saved_at),
            is_loaded,
            days_loaded: checkpoint.days.len() as u64,
            days_total: match is_loaded {
                // Where there is nothing to load, no day is.
                true => checkpoint.days.len() as u64,
                false => share.days_with_margin(margin).len() as u64,
            },
            traces_loaded: checkpoint.traces(),
            segments_done: checkpoint.done.len() as u64,
            segments_total: segments_total as u64,
            awaits_experiments: checkpoint.awaits_experiments(),
            observations_waiting: checkpoint.deferred.values().map(|late| late.rows).sum(),
            observations_processed: observations.observations,
            events_inserted: observations.inserted,
            root_spans_inserted: root_spans.inserted,
            observations_without_trace: observations.without_trace,
        }
    }

    /// What is being done, and how far it is.
    pub(super) fn in_words(&self) -> String {
        match self.is_loaded {
            true if self.awaits_experiments => "dataset runs".to_owned(),
            false => format!("traces, {}/{} days", self.days_loaded, self.days_total),
            true => format!("{}/{} segments", self.segments_done, self.segments_total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_date_and_time_in_json() {
        let json = serde_json::to_string(&Moment(1_717_200_000)).unwrap();
        assert_eq!(json, "\"2024-06-01T00:00:00Z\"");
    }
}
