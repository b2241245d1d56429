//! The summary of a run, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::advice_on_files;
use super::output_file;
use crate::error::Error;
use crate::memory::ByteSize;
use crate::memory::numbers::whole;
use crate::progress::words::{count, seconds, write_lines};

/// Characters before a value in the summary.
pub(crate) const SUMMARY_WIDTH: usize = 28;

/// Seconds by the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Seconds {
    /// Loading traces.
    pub load: f64,
    /// Streaming observations, inserts included.
    pub stream: f64,
    /// Writing root spans, likewise.
    pub root_spans: f64,
    /// Waiting for inserts, summed over the segments that ran side by side;
    /// so it can exceed `stream`.
    pub insert: f64,
    /// Everything.
    pub total: f64,
}

/// What a run did. Of an older version's, what it does not name is nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// Which shard's days of it, as `3/8`; all days where there is none.
    #[serde(default)]
    pub shard: Option<String>,
    /// `database.table` that was written to.
    pub target_table: String,
    /// Whether nothing was inserted on purpose.
    pub dry_run: bool,
    /// Whether the run continued an earlier one.
    pub resumed: bool,
    /// Traces in the store.
    pub traces_loaded: u64,
    /// Observations read and enriched.
    pub observations_processed: u64,
    /// Rows the server acknowledged.
    pub events_inserted: u64,
    /// Observations whose trace was not found.
    pub observations_without_trace: u64,
    /// Root spans the server acknowledged, if they were wanted.
    pub root_spans_inserted: Option<u64>,
    /// Versions of traces that have no root span, since another version counts or the trace is
    /// deleted, if root spans were wanted.
    pub traces_superseded: Option<u64>,
    /// Spans that belong to an experiment, if that was wanted.
    pub spans_in_experiments: Option<u64>,
    /// Rows of observations that are not the version that counts.
    pub observations_superseded: u64,
    /// Spans that were not written, since the target has a row of Langfuse's own that is as new.
    pub left_to_live_rows: u64,
    /// Traces without a root span of ours, since they have one of Langfuse's own.
    pub root_spans_left_to_live_roots: u64,
    /// Traces without a root span of ours, since one of their observations is called like it.
    pub root_spans_left_to_observations: u64,
    /// Dataset run items that no span of ours belongs to, since spans of Langfuse's own do.
    pub items_left_to_live_spans: u64,
    /// Events that a backfill had written before the run, and that are as new.
    pub already_there: u64,
    /// Rows that changed after `until`, which Langfuse is about to write.
    pub left_to_live_path: u64,
    /// Rows that changed later are left to Langfuse.
    pub until: Option<String>,
    /// Traces that changed while the run went on, and were loaded again.
    pub traces_reloaded: u64,
    /// Those of them that changed after events had been written.
    pub traces_changed_after_writing: u64,
    /// Rows that stand in the target once more until they are merged, where all were written again.
    pub rows_to_merge: Option<u64>,
    /// Traces that were found in ClickHouse although they are on none of the days that were
    /// loaded.
    pub traces_remote: u64,
    /// Traces that observations name and ClickHouse does not have, or has as deleted.
    pub traces_not_found: u64,
    /// Some of these, 100 at most.
    pub traces_not_found_listed: Vec<TraceId>,
    /// What the process ended with, if not with success.
    pub ended_with: Option<String>,
    /// Errors that ended work for good.
    pub errors: u64,
    /// Tries that were repeated after a passing error.
    pub retries: u64,
    /// Segments of the plan.
    pub segments_total: u64,
    /// Segments that are done.
    pub segments_done: u64,
    /// Seconds for which it went slower than it could, by reason.
    pub throttled_seconds: BTreeMap<String, f64>,
    /// Peak resident memory of the process, in bytes.
    pub peak_rss_bytes: u64,
    /// The trace store on disk, in bytes.
    pub store_bytes: u64,
    /// Where the time went.
    pub seconds: Seconds,
    /// Observations per second of `seconds.stream`.
    pub observations_per_second: f64,
    /// Root spans per second of `seconds.root_spans`.
    pub root_spans_per_second: f64,
}

/// Which trace. What is not UTF-8 in it is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceId {
    /// `project_id`
    pub project_id: String,
    /// `id`
    pub trace_id: String,
}

impl TraceId {
    /// Of these bytes.
    pub(crate) fn new(project_id: &[u8], trace_id: &[u8]) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self {
            project_id: text(project_id),
            trace_id: text(trace_id),
        }
    }
}

/// Makes sure that a report can be written to `path`, which `flag` names, before there is one.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) where it cannot.
pub(crate) fn require_writable(path: &Path, flag: &str) -> Result<(), Error> {
    output_file::require_writable(path).map_err(|error| {
        Error::configuration(format!(
            "the report {} cannot be written: {error}; name another file with {flag}",
            path.display()
        ))
    })
}

/// Makes sure that two files that are to be written are two: the later one would take the place of the
/// other. Each comes with the flag that names it.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) where they are one.
pub(crate) fn require_different(
    (one, flag): (&Path, &str),
    (other, other_flag): (&Path, &str),
) -> Result<(), Error> {
    match output_file::is_same(one, other) {
        Ok(true) => Err(Error::configuration(format!(
            "{flag} and {other_flag} both name {}: name another file with {other_flag}",
            other.display()
        ))),
        // What is wrong with a path is told where it is looked at alone.
        _ => Ok(()),
    }
}

/// Writes a summary as JSON, whole or not at all where it is a regular file.
///
/// # Errors
/// Whatever the file system says.
fn write_json(summary: &impl Serialize, path: &Path) -> std::io::Result<()> {
    let mut json = serde_json::to_vec_pretty(summary)?;
    json.push(b'\n');
    output_file::write(path, &json, output_file::PUBLIC)
}

/// Writes a summary where it is wanted.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) where the file system does not let it.
pub(crate) fn publish(summary: &impl Serialize, path: &Path) -> Result<(), Error> {
    write_json(summary, path).map_err(|error| unwritable(path, &error))
}

/// Writes a page where it is wanted.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) where the file system does not let it.
pub(crate) fn publish_page(html: &str, path: &Path) -> Result<(), Error> {
    output_file::write(path, html.as_bytes(), output_file::PRIVATE)
        .map_err(|error| unwritable(path, &error))
}

/// Keeps a summary in the state directory, whole or not at all, for its owner alone.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) where the file system does not let it.
pub(crate) fn keep(summary: &impl Serialize, path: &Path) -> Result<(), Error> {
    let kept = || {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer_pretty(&mut file, summary)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    kept().map_err(|error: std::io::Error| {
        let what = format!("the report {} cannot be written", path.display());
        Error::caused(what, &error).with(advice_on_files(&error))
    })
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!(
        "the report {} cannot be written: {error}; the work itself is done as far as it is said above",
        path.display(),
    ))
}

/// Whether it is one, in the summary.
pub(crate) fn dry_run_in_words(dry_run: bool) -> String {
    match dry_run {
        true => "yes: nothing was inserted".to_owned(),
        false => "no".to_owned(),
    }
}

/// How long, and why.
fn throttled_in_words(by_reason: &BTreeMap<String, f64>) -> String {
    if by_reason.is_empty() {
        return "none".to_owned();
    }
    let reasons = by_reason
        .iter()
        .map(|(name, time)| format!("{} {}", name.replace('_', " "), seconds(*time)));
    reasons.collect::<Vec<_>>().join(", ")
}

/// The lines of a summary, and behind the number of events those that are only written where
/// they are asked for.
pub(crate) fn write_summary(
    f: &mut fmt::Formatter<'_>,
    lines: &[(&'static str, String)],
    root_spans: Option<u64>,
    in_experiments: Option<u64>,
) -> fmt::Result {
    let asked_for = [
        ("Root spans inserted", root_spans),
        ("Spans in experiments", in_experiments),
    ];
    for line in lines {
        write_lines(f, SUMMARY_WIDTH, [line.clone()])?;
        if line.0 == "Events inserted" {
            let asked_for = asked_for.into_iter();
            write_lines(
                f,
                SUMMARY_WIDTH,
                asked_for.filter_map(|(name, number)| Some((name, count(number?)))),
            )?;
        }
    }
    Ok(())
}

impl Report {
    /// What of the month the run did: `202406`, or `202406 3/8`.
    pub(crate) fn name(&self) -> String {
        match &self.shard {
            Some(shard) => format!("{} {shard}", self.partition),
            None => self.partition.clone(),
        }
    }

    /// All rows the server acknowledged, root spans included.
    pub(crate) fn all_events(&self) -> u64 {
        self.events_inserted + self.root_spans_inserted.unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("Partition", self.name()),
            ("Target table", self.target_table.clone()),
            ("Dry run", dry_run_in_words(self.dry_run)),
            ("Traces loaded", count(self.traces_loaded)),
            ("Observations processed", count(self.observations_processed)),
            ("Events inserted", count(self.events_inserted)),
            (
                "Observations without trace",
                count(self.observations_without_trace),
            ),
            ("Left to live rows", count(self.left_to_live_rows)),
            (
                "Left to live roots",
                count(self.root_spans_left_to_live_roots),
            ),
            ("Left to Langfuse", count(self.left_to_live_path)),
            ("There already", count(self.already_there)),
            ("Older versions", count(self.observations_superseded)),
            (
                "Traces changed meanwhile",
                count(self.traces_changed_after_writing),
            ),
            ("Traces of other months", count(self.traces_remote)),
            ("Traces not found", count(self.traces_not_found)),
            ("Errors", count(self.errors)),
            ("Retries", count(self.retries)),
            (
                "Segments done",
                format!("{} of {}", self.segments_done, self.segments_total),
            ),
            ("Time loading traces", seconds(self.seconds.load)),
            ("Time streaming", seconds(self.seconds.stream)),
            ("Time inserting (summed)", seconds(self.seconds.insert)),
            (
                "Time throttled",
                throttled_in_words(&self.throttled_seconds),
            ),
            ("Time in total", seconds(self.seconds.total)),
            (
                "Throughput",
                format!(
                    "{} observations/s",
                    count(whole(self.observations_per_second))
                ),
            ),
            ("Peak memory", ByteSize(self.peak_rss_bytes).to_string()),
            (
                "Trace store on disk",
                ByteSize(self.store_bytes).to_string(),
            ),
        ];
        write_summary(
            f,
            &lines,
            self.root_spans_inserted,
            self.spans_in_experiments,
        )
    }
}
