//! The report of a run, as text and as JSON.

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
use crate::progress::words::{at_least, count, seconds, write_lines};

/// Characters before a value in the summary.
pub(crate) const SUMMARY_WIDTH: usize = 28;

/// Why a bar showed more than the summary of an interrupted run.
pub(crate) const UNDER_WAY: &str = "those under way are not counted, and --resume reads them again";

/// Wall-clock seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Seconds {
    /// Loading traces.
    pub load: f64,
    /// Streaming observations, including inserts.
    pub stream: f64,
    /// Writing root spans, including inserts.
    pub root_spans: f64,
    /// Waiting for inserts, summed over parallel segments, so it can exceed `stream`.
    pub insert: f64,
    /// Everything.
    pub total: f64,
}

/// What a run did. Fields missing in an older version's report read as zero or empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// The shard, such as `3/8`; absent for the whole month.
    #[serde(default)]
    pub shard: Option<String>,
    /// The table written to, as `database.table`.
    pub target_table: String,
    /// Whether it was a dry run, which inserts nothing.
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
    /// Root spans the server acknowledged, if wanted.
    pub root_spans_inserted: Option<u64>,
    /// Versions of traces without a root span, because a newer version exists or the trace is deleted;
    /// only if root spans were wanted.
    pub traces_superseded: Option<u64>,
    /// Spans that belong to an experiment, if experiments were wanted.
    pub spans_in_experiments: Option<u64>,
    /// Rows that an interrupted process or a failed attempt had written. They count as inserted, but not in
    /// `observations_without_trace` and `spans_in_experiments`, which are then lower bounds.
    pub written_by_earlier_attempts: u64,
    /// Outdated versions of observations.
    pub observations_superseded: u64,
    /// Spans not written because Langfuse's own row in the target is at least as new.
    pub left_to_live_rows: u64,
    /// Traces that got no root span because Langfuse wrote one itself.
    pub root_spans_left_to_live_roots: u64,
    /// Traces that got no root span because one of their observations has its id.
    pub root_spans_left_to_observations: u64,
    /// Dataset run items left to spans that Langfuse wrote itself.
    pub items_left_to_live_spans: u64,
    /// Events not written because an earlier backfill's row is at least as new.
    pub already_there: u64,
    /// Rows changed after `until`, left to Langfuse, which is about to write them.
    pub left_to_live_path: u64,
    /// Rows changed after this time are left to Langfuse.
    pub until: Option<String>,
    /// Traces that changed during the run and were loaded again.
    pub traces_reloaded: u64,
    /// Of these, traces that changed after their events had been written.
    pub traces_changed_after_writing: u64,
    /// Rows that are in the target twice until ClickHouse merges them, if all rows were written again.
    pub rows_to_merge: Option<u64>,
    /// Traces found in ClickHouse outside the loaded days.
    pub traces_remote: u64,
    /// Traces that observations name but that ClickHouse lacks, or has as deleted.
    pub traces_not_found: u64,
    /// Up to 100 of these.
    pub traces_not_found_listed: Vec<TraceId>,
    /// The error that ended the process, if it failed.
    pub ended_with: Option<String>,
    /// Errors that retries did not overcome.
    pub errors: u64,
    /// Retries after temporary errors.
    pub retries: u64,
    /// Segments of the plan.
    pub segments_total: u64,
    /// Segments that are done.
    pub segments_done: u64,
    /// Seconds during which the run was throttled, by reason.
    pub throttled_seconds: BTreeMap<String, f64>,
    /// Peak resident memory of the process, in bytes.
    pub peak_rss_bytes: u64,
    /// Size of the trace store on disk, in bytes.
    pub store_bytes: u64,
    /// Where the time went.
    pub seconds: Seconds,
    /// Observations per second of `seconds.stream`.
    pub observations_per_second: f64,
    /// Root spans per second of `seconds.root_spans`.
    pub root_spans_per_second: f64,
}

/// A trace. Bytes that are not UTF-8 are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceId {
    /// `project_id`
    pub project_id: String,
    /// `id`
    pub trace_id: String,
}

impl TraceId {
    /// From raw bytes.
    pub(crate) fn new(project_id: &[u8], trace_id: &[u8]) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self {
            project_id: text(project_id),
            trace_id: text(trace_id),
        }
    }
}

/// Checks in advance that a report can be written to `path`, which `flag` names.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if it cannot.
pub(crate) fn require_writable(path: &Path, flag: &str) -> Result<(), Error> {
    output_file::require_writable(path).map_err(|error| {
        Error::configuration(format!(
            "the report {} cannot be written: {error}; choose another file with {flag}",
            path.display()
        ))
    })
}

/// Checks that two output files differ, since the second would replace the first. Each comes with the flag
/// that names it.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if they are the same.
pub(crate) fn require_different(
    (one, flag): (&Path, &str),
    (other, other_flag): (&Path, &str),
) -> Result<(), Error> {
    match output_file::is_same(one, other) {
        Ok(true) => Err(Error::configuration(format!(
            "{flag} and {other_flag} both name {}: choose another file with {other_flag}",
            other.display()
        ))),
        // `require_writable` reports a bad path.
        _ => Ok(()),
    }
}

/// Writes a summary as JSON; a regular file whole or not at all.
///
/// # Errors
/// The I/O error if the file cannot be written.
fn write_json(summary: &impl Serialize, path: &Path) -> std::io::Result<()> {
    let mut json = serde_json::to_vec_pretty(summary)?;
    json.push(b'\n');
    output_file::write(path, &json, output_file::PUBLIC)
}

/// Writes a summary to the file that the user named.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) if the file cannot be written.
pub(crate) fn publish(summary: &impl Serialize, path: &Path) -> Result<(), Error> {
    write_json(summary, path).map_err(|error| unwritable(path, &error))
}

/// Writes an HTML page to the file that the user named.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) if the file cannot be written.
pub(crate) fn publish_page(html: &str, path: &Path) -> Result<(), Error> {
    output_file::write(path, html.as_bytes(), output_file::PRIVATE)
        .map_err(|error| unwritable(path, &error))
}

/// Saves a summary in the state directory, whole or not at all, readable by its owner only.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) if the file cannot be written.
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
        "the report {} cannot be written: {error}; the work reported above is done",
        path.display(),
    ))
}

/// The summary's words for a dry run.
pub(crate) fn dry_run_in_words(dry_run: bool) -> String {
    match dry_run {
        true => "yes: nothing was inserted".to_owned(),
        false => "no".to_owned(),
    }
}

/// Throttled time by reason, for the summary.
fn throttled_in_words(by_reason: &BTreeMap<String, f64>) -> String {
    if by_reason.is_empty() {
        return "none".to_owned();
    }
    let reasons = by_reason
        .iter()
        .map(|(name, time)| format!("{} {}", name.replace('_', " "), seconds(*time)));
    reasons.collect::<Vec<_>>().join(", ")
}

/// Writes the lines of a summary. After "Events inserted" come the counts that only exist if asked for.
pub(crate) fn write_summary(
    f: &mut fmt::Formatter<'_>,
    lines: &[(&'static str, String)],
    root_spans: Option<u64>,
    in_experiments: Option<String>,
) -> fmt::Result {
    let asked_for = [
        ("Root spans inserted", root_spans.map(count)),
        ("Spans in experiments", in_experiments),
    ];
    for line in lines {
        write_lines(f, SUMMARY_WIDTH, [line.clone()])?;
        if line.0 == "Events inserted" {
            let asked_for = asked_for.iter();
            write_lines(
                f,
                SUMMARY_WIDTH,
                asked_for.filter_map(|(name, number)| Some((*name, number.clone()?))),
            )?;
        }
    }
    Ok(())
}

impl Report {
    /// The share of the month that the run did: `202406`, or `202406 3/8`.
    pub(crate) fn name(&self) -> String {
        match &self.shard {
            Some(shard) => format!("{} {shard}", self.partition),
            None => self.partition.clone(),
        }
    }

    /// Whether some rows' traces and experiments were not counted.
    pub(crate) fn is_counted_in_part(&self) -> bool {
        self.written_by_earlier_attempts > 0
    }

    /// Whether the process ended while it wrote segments: the bars counted their rows, and the report does
    /// not.
    pub(crate) fn left_segments_under_way(&self) -> bool {
        let has_written = self.seconds.stream > 0.0 || self.seconds.root_spans > 0.0;
        !self.dry_run
            && self.ended_with.is_some()
            && has_written
            && self.segments_done < self.segments_total
    }

    fn segments_in_words(&self) -> String {
        let done = format!("{} of {}", self.segments_done, self.segments_total);
        match self.left_segments_under_way() {
            true => format!("{done}; {UNDER_WAY}"),
            false => done,
        }
    }

    /// All rows the server acknowledged, including root spans.
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
                at_least(self.observations_without_trace, self.is_counted_in_part()),
            ),
            ("Left to live rows", count(self.left_to_live_rows)),
            (
                "Left to live roots",
                count(self.root_spans_left_to_live_roots),
            ),
            ("Left to Langfuse", count(self.left_to_live_path)),
            ("Already there", count(self.already_there)),
            ("Older versions", count(self.observations_superseded)),
            (
                "Traces changed meanwhile",
                count(self.traces_changed_after_writing),
            ),
            ("Traces of other months", count(self.traces_remote)),
            ("Traces not found", count(self.traces_not_found)),
            ("Errors", count(self.errors)),
            ("Retries", count(self.retries)),
            ("Segments done", self.segments_in_words()),
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
            self.spans_in_experiments
                .map(|spans| at_least(spans, self.is_counted_in_part())),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_an_interrupted_run_says_what_becomes_of_segments_under_way() {
        let finished = Report {
            segments_done: 3,
            segments_total: 3,
            seconds: Seconds {
                stream: 1.0,
                ..Seconds::default()
            },
            ..Report::default()
        };
        let text = finished.to_string();
        assert!(
            text.contains("\nSegments done               3 of 3\n"),
            "{text}"
        );
        let interrupted = Report {
            segments_total: 9,
            ended_with: Some("interrupted".to_owned()),
            ..finished
        };
        let text = interrupted.to_string();
        assert!(
            text.contains(&format!(
                "\nSegments done               3 of 9; {UNDER_WAY}\n"
            )),
            "{text}"
        );
        // No segment had begun.
        let loading = Report {
            seconds: Seconds::default(),
            ..interrupted
        };
        assert!(!loading.to_string().contains(UNDER_WAY));
    }
}
