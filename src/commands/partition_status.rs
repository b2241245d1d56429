//! The progress of one run, read from its state directory without disturbing it.

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

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// All done.
    Finished,
    /// A process works on it.
    Running,
    /// It was stopped before the end, and can be continued.
    Interrupted,
    /// Its last process failed, and it can be continued.
    Failed,
    /// It has a directory, but saved nothing to continue.
    NotBegun,
    /// A dry run was killed before it could remove its directory.
    LeftOver,
    /// The checkpoint file is damaged.
    Damaged,
    /// This user, or this version of the program, cannot read the checkpoint.
    Unreadable,
}

/// The status of one partition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PartitionStatus {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// The shard, as `3/8`; null for all days.
    pub shard: Option<String>,
    /// The ClickHouse shard it runs on; null without `--all-shards`.
    pub cluster_shard: Option<u32>,
    /// Whether it is a dry run, which keeps no checkpoint.
    pub dry_run: bool,
    /// The state of the run.
    pub state: State,
    /// Process ID of the active process, if known.
    pub process: Option<u32>,
    /// Speed of the active process, if it answers.
    pub speed: Option<SpeedState>,
    /// Progress according to the checkpoint, if there is one.
    pub progress: Option<Progress>,
    /// Size of the trace store on disk, in bytes.
    pub store_bytes: u64,
    /// What is happening, or what to do next.
    pub next: Option<String>,
    /// Why the checkpoint is unusable, and what to do.
    pub error: Option<String>,
    /// Report of the last process that ended, if there is one.
    pub last_report: Option<serde_json::Value>,
}

/// Progress according to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    /// Time when the run started.
    pub begun_at: Moment,
    /// Time when the checkpoint was written.
    pub saved_at: Moment,
    /// Whether all traces are loaded.
    pub is_loaded: bool,
    /// Days whose traces are loaded.
    pub days_loaded: u64,
    /// Days whose traces are to be loaded; 0 if there are no traces.
    pub days_total: u64,
    /// Traces in the store.
    pub traces_loaded: u64,
    /// Whether it is now finding the spans of dataset runs.
    pub awaits_experiments: bool,
    /// Segments that are done, except for waiting observations.
    pub segments_done: u64,
    /// All segments.
    pub segments_total: u64,
    /// Observations of these segments that wait for a search for their traces in other months.
    pub observations_waiting: u64,
    /// Processed observations.
    pub observations_processed: u64,
    /// Events of these that the server acknowledged.
    pub events_inserted: u64,
    /// Root spans that the server acknowledged.
    pub root_spans_inserted: u64,
    /// Processed observations whose trace was not found.
    pub observations_without_trace: u64,
    /// Rows that an interrupted process or a failed attempt had written: they are not among these.
    pub written_by_earlier_attempts: u64,
}

impl PartitionStatus {
    /// Month, shard and cluster shard, for a table.
    pub(super) fn name(&self) -> String {
        let shard = self.shard.iter().map(|shard| format!(" {shard}"));
        let on_shard = self
            .cluster_shard
            .iter()
            .map(|shard| format!(" on {shard}"));
        let name = [self.partition.clone()].into_iter();
        name.chain(shard).chain(on_shard).collect()
    }

    /// Looks at one directory.
    pub(crate) fn of(directory: &PartitionDir) -> Self {
        // The lock first: a run that ends in between has then left a finished checkpoint. In the
        // opposite order it would look interrupted.
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
            cluster_shard: directory.cluster_shard(),
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

/// The last process's error, from its report.
fn ended_with(report: Option<&serde_json::Value>) -> Option<&str> {
    report?.get("ended_with")?.as_str()
}

/// Whether the report is from the process that wrote the checkpoint: a killed process leaves none.
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
        CheckpointError::File(_) => "run this as the user who runs the backfill",
        CheckpointError::Damaged(_) => "--restart discards it and starts over",
        CheckpointError::Version { .. } => {
            "use the version that wrote it, or discard it and start over with --restart"
        }
    };
    format!(
        "cannot use the checkpoint {} of partition {}: {error}; {advice}",
        directory.checkpoint().display(),
        directory.share
    )
}

/// What is happening, or what to do next, in words.
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
                "; {} observations wait for traces from other months",
                HumanCount(waiting)
            )
        });
    Some(match (state, holder) {
        (State::Finished, _) => return None,
        (State::Running, Some(holder)) if directory.dry_run => {
            format!("{holder} is doing a dry run")
        }
        (State::Running, Some(holder)) if progress.is_none() => {
            format!("{holder} is starting it, or working on other months first")
        }
        (State::Running, Some(holder)) => format!("{holder} is working on it{waiting}"),
        (State::Running, None) => return None,
        (State::Interrupted, _) => {
            format!("continue it with the same command line and --resume{waiting}")
        }
        (State::Failed, _) => format!(
            "read its last error message, then continue it with the same command line and --resume{waiting}"
        ),
        (State::NotBegun, _) => {
            "nothing is saved yet: start it with the same command line, and with --resume if other months \
             are unfinished"
                .to_owned()
        }
        (State::LeftOver, _) => format!(
            "a dry run was killed: run it again, or remove {}",
            directory.path.display()
        ),
        (State::Damaged, _) => "start over with --restart".to_owned(),
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
                // Without traces, no days are loaded.
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
            written_by_earlier_attempts: observations.left_out.written_before,
        }
    }

    /// The current phase and its progress.
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
