//! `status`: shows the progress of the runs in the state directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use serde::Serialize;

use super::partition_status::{PartitionStatus, Progress, State};
use super::sharded_months::ShardedMonth;
use crate::cli::setting_of_state_dir;
use crate::error::Error;
use crate::memory::ByteSize;
use crate::progress::words::{aligned, at_least};
use crate::state::directory::PartitionDir;

/// Prints the progress of the runs in the state directories `roots`, as a table or JSON.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if a directory does not exist or cannot be read;
/// [`Kind::Failed`](crate::error::Kind), after printing the others, if a partition's state is unusable.
pub(crate) fn run(roots: &[PathBuf], as_json: bool) -> Result<(), Error> {
    let directories = directories(roots)?;
    let partitions: Vec<PartitionStatus> = directories.iter().map(PartitionStatus::of).collect();
    let sharded = ShardedMonth::all(directories.iter().zip(&partitions));
    let text = match as_json {
        true => json(roots, &partitions, &sharded)?,
        false if partitions.is_empty() => format!(
            "no run has been started in {}: start one with `events-backfill --partition YYYYMM`, or \
             choose another directory with --state-dir",
            listed(roots)
        ),
        false => table(&partitions, &sharded),
    };
    // A closed standard output is no reason to fail.
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

/// The directories of all runs in the state directories, oldest partition first.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if one does not exist or cannot be read.
pub(super) fn directories(roots: &[PathBuf]) -> Result<Vec<PartitionDir>, Error> {
    let mut directories = Vec::new();
    for root in roots {
        directories
            .extend(PartitionDir::all_below(root).map_err(|error| unreadable(root, &error))?);
    }
    directories.sort();
    directories.dedup();
    Ok(directories)
}

/// State directories as a list for a message.
pub(super) fn listed(roots: &[PathBuf]) -> String {
    let roots: Vec<String> = roots
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    roots.join(", ")
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let root = path.display();
    let sentence = match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "there is no state directory {root}, so no run has been started there: start one with \
             `events-backfill --partition YYYYMM`, or give the right directory with --state-dir"
        ),
        _ => format!(
            "cannot read the state directory {root}: {error}; give the right one with --state-dir"
        ),
    };
    Error::configuration(sentence).about(setting_of_state_dir(path))
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
        .map_err(|error| Error::caused("cannot write the status as JSON", error))
}

/// Column names of the table.
const COLUMNS: [&str; 8] = [
    "Month",
    "State",
    "Progress",
    "Events",
    "No trace",
    "Started (UTC)",
    "Saved (UTC)",
    "Store",
];
/// Number of left-aligned columns, from the left.
const WORDS: usize = 3;

/// A line of about a hundred characters for each partition, with the next step below it, and a final
/// line for each sharded month.
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
        State::NotBegun => "not started",
        State::LeftOver => "dry run",
        State::Damaged => "damaged",
        State::Unreadable => "unreadable",
    };
    let count = |count: u64| HumanCount(count).to_string();
    [
        partition.name(),
        state.to_owned(),
        of(&|progress| progress.in_words()),
        of(&|progress| count(progress.events_inserted + progress.root_spans_inserted)),
        of(&|progress| {
            let is_in_part = progress.written_by_earlier_attempts > 0;
            at_least(progress.observations_without_trace, is_in_part)
        }),
        of(&|progress| progress.begun_at.to_minute()),
        of(&|progress| progress.saved_at.to_minute()),
        ByteSize(partition.store_bytes).to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::moment::Moment;

    fn partition(state: State, progress: Option<Progress>) -> PartitionStatus {
        PartitionStatus {
            partition: "202406".to_owned(),
            shard: None,
            cluster_shard: None,
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
            written_by_earlier_attempts: 0,
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
            ("not started", lines[4]),
        ] {
            assert!(line.contains(word), "{word}: {line}");
        }
    }
}
