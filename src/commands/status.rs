//! How far the runs in the state directory are: read from what they keep there,
//! without any of them noticing it.

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use serde::Serialize;

use super::sharded_months::ShardedMonth;
use crate::control;
use crate::error::Error;
use crate::mapping::Source;
use crate::memory::ByteSize;
use crate::partition::ShareOfMonth;
use crate::progress::moment::Moment;
use crate::progress::words::aligned;
use crate::state::checkpoint::{Checkpoint, CheckpointError};
use crate::state::directory::{Holder, PartitionDir};
use crate::throttle::SpeedState;
use crate::trace_store;

/// Prints how far the runs in the state directories `roots` are, as a table or as JSON.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) where there is no such directory; [`Kind::Failed`](crate::error::Kind),
/// after all else is printed, with the partitions whose state cannot be used.
pub(crate) fn run(roots: &[PathBuf], as_json: bool) -> Result<(), Error> {
    let directories = directories(roots)?;
    let partitions: Vec<PartitionStatus> = directories.iter().map(PartitionStatus::of).collect();
    let sharded = ShardedMonth::all(directories.iter().zip(&partitions));
    let text = match as_json {
        true => json(roots, &partitions, &sharded)?,
        false if partitions.is_empty() => format!("there are no runs in {}", listed(roots)),
        false => table(&partitions, &sharded),
    };
    // If nobody reads it, there is nobody to be told.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
    let errors: Vec<&str> = partitions
        .iter()
        .filter_map(|partition| partition.error.as_deref())
        .collect();
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Error::failed(errors.join("; "))),
    }
}

/// The directories of all runs in some state directories, the oldest partition first.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) where one of them is not there, or cannot be read.
pub(super) fn directories(roots: &[PathBuf]) -> Result<Vec<PartitionDir>, Error> {
    let mut directories = Vec::new();
    for root in roots {
        directories.extend(PartitionDir::all(root).map_err(|error| unreadable(root, &error))?);
    }
    directories.sort();
    directories.dedup();
    Ok(directories)
}

/// State directories, in words.
pub(super) fn listed(roots: &[PathBuf]) -> String {
    let roots: Vec<String> = roots
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    roots.join(", ")
}

pub(super) fn unreadable(root: &Path, error: &std::io::Error) -> Error {
    let root = root.display();
    Error::configuration(match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("there is no state directory {root}: name the one of the runs with --state-dir")
        }
        _ => format!(
            "the state directory {root} cannot be read: {error}; name the one of the runs with \
             --state-dir"
        ),
    })
}

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
    fn in_words(&self) -> String {
        match self.is_loaded {
            true if self.awaits_experiments => "dataset runs".to_owned(),
            false => format!("traces, {}/{} days", self.days_loaded, self.days_total),
            true => format!("{}/{} segments", self.segments_done, self.segments_total),
        }
    }
}

fn json(
    roots: &[PathBuf],
    partitions: &[PartitionStatus],
    sharded_months: &[ShardedMonth],
) -> Result<String, Error> {
    #[derive(Serialize)]
    struct All<'a> {
        state_dir: String,
        partitions: &'a [PartitionStatus],
        sharded_months: &'a [ShardedMonth],
    }
    let all = All {
        state_dir: listed(roots),
        partitions,
        sharded_months,
    };
    serde_json::to_string_pretty(&all)
        .map_err(|error| Error::caused("the status cannot be written as JSON", error))
}

/// What the columns of the table are called.
const COLUMNS: [&str; 8] = [
    "Month",
    "State",
    "Progress",
    "Events",
    "No trace",
    "Begun (UTC)",
    "Saved (UTC)",
    "Store",
];
/// How many columns, from the left, are aligned to the left.
const WORDS: usize = 3;

/// A line for each partition, of about a hundred characters, and one below it where there
/// is something to do; at the end one for each month that shards do.
fn table(partitions: &[PartitionStatus], sharded: &[ShardedMonth]) -> String {
    let header = COLUMNS.map(str::to_owned);
    let rows: Vec<[String; COLUMNS.len()]> = std::iter::once(header)
        .chain(partitions.iter().map(cells))
        .collect();
    let mut lines = Vec::new();
    let partitions = std::iter::once(None).chain(partitions.iter().map(Some));
    for (line, partition) in aligned(&rows, WORDS).into_iter().zip(partitions) {
        lines.push(line);
        let next = partition.and_then(|partition| partition.next.as_ref());
        lines.extend(next.map(|next| format!("        {next}")));
    }
    lines.extend(sharded.iter().map(ShardedMonth::to_string));
    lines.join("\n")
}

fn cells(partition: &PartitionStatus) -> [String; COLUMNS.len()] {
    let of = |cell: &dyn Fn(&Progress) -> String| match &partition.progress {
        Some(progress) => cell(progress),
        None => "-".to_owned(),
    };
    let state = match partition.state {
        State::Finished => "finished",
        State::Running if partition.dry_run => "dry run",
        State::Running if partition.progress.is_none() => "pending",
        State::Running => "running",
        State::Interrupted => "interrupted",
        State::Failed => "failed",
        State::NotBegun => "not begun",
        State::LeftOver => "dry run",
        State::Damaged => "damaged",
        State::Unreadable => "unreadable",
    };
    let count = |count: u64| HumanCount(count).to_string();
    [
        match &partition.shard {
            Some(shard) => format!("{} {shard}", partition.partition),
            None => partition.partition.clone(),
        },
        state.to_owned(),
        of(&|progress| progress.in_words()),
        of(&|progress| count(progress.events_inserted + progress.root_spans_inserted)),
        of(&|progress| count(progress.observations_without_trace)),
        of(&|progress| progress.begun_at.to_minute()),
        of(&|progress| progress.saved_at.to_minute()),
        ByteSize(partition.store_bytes).to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(state: State, progress: Option<Progress>) -> PartitionStatus {
        PartitionStatus {
            partition: "202406".to_owned(),
            shard: None,
            dry_run: false,
            state,
            speed: None,
            process: None,
            progress,
            store_bytes: 12 << 30,
            next: (state != State::Finished).then(|| "run it again".to_owned()),
            error: None,
            last_report: None,
        }
    }

    fn progress() -> Progress {
        Progress {
            begun_at: Moment(1_717_200_000),
            saved_at: Moment(1_717_203_659),
            is_loaded: true,
            days_loaded: 32,
            days_total: 32,
            traces_loaded: 20_000_000,
            awaits_experiments: false,
            segments_done: 398,
            segments_total: 400,
            observations_waiting: 0,
            observations_processed: 99_500_000,
            events_inserted: 99_499_000,
            root_spans_inserted: 999,
            observations_without_trace: 123_456,
        }
    }

    #[test]
    fn each_partition_has_a_short_line_and_one_where_there_is_something_to_do() {
        let loading = Progress {
            is_loaded: false,
            days_loaded: 7,
            ..progress()
        };
        let partitions = [
            partition(State::Finished, Some(progress())),
            partition(State::Interrupted, Some(loading)),
            partition(State::NotBegun, None),
        ];
        let table = table(&partitions, &[]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 6);
        for line in &lines {
            assert!(line.chars().count() <= 110, "{line}");
        }
        for (word, line) in [
            ("Progress", lines[0]),
            ("finished", lines[1]),
            ("398/400 segments", lines[1]),
            ("99,499,999", lines[1]),
            ("123,456", lines[1]),
            ("2024-06-01 00:00", lines[1]),
            ("2024-06-01 01:00", lines[1]),
            ("12.0 GiB", lines[1]),
            ("traces, 7/32 days", lines[2]),
            ("run it again", lines[3]),
            ("not begun", lines[4]),
        ] {
            assert!(line.contains(word), "{word}: {line}");
        }
    }

    #[test]
    fn a_moment_is_a_date_and_time_in_json() {
        let json = serde_json::to_string(&Moment(1_717_200_000)).unwrap();
        assert_eq!(json, "\"2024-06-01T00:00:00Z\"");
    }
}
