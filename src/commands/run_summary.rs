//! The summary of a run over several partitions, as text and JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cli::selection::in_words;
use crate::error::{Error, Kind};
use crate::memory::numbers::whole;
use crate::memory::{ByteSize, peak_resident_bytes};
use crate::partition::Partition;
use crate::progress::words::{aligned, at_least, count, seconds, write_lines};
use crate::state::history::History;
use crate::state::report::{
    Report, SUMMARY_WIDTH, Seconds, UNDER_WAY, dry_run_in_words, write_summary,
};

/// The outcome of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Done by this process.
    Done,
    /// Done earlier, and skipped.
    AlreadyFinished,
    /// Ended by an error.
    Failed,
    /// Stopped by a signal.
    Interrupted,
    /// Not started before the process ended.
    NotBegun,
}

impl State {
    /// The state after a partition's outcome.
    pub(super) fn after(outcome: &Result<(), Error>) -> Self {
        match outcome.as_ref().map_err(Error::kind) {
            Ok(()) => State::Done,
            Err(Kind::Interrupted { .. }) => State::Interrupted,
            Err(Kind::Configuration | Kind::Failed) => State::Failed,
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            State::Done => "done",
            State::AlreadyFinished => "already finished",
            State::Failed => "failed",
            State::Interrupted => "interrupted",
            State::NotBegun => "not started",
        }
    }
}

/// One partition's report and outcome.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) state: State,
    /// Why it is not done; null if it is.
    error: Option<String>,
    /// All zero if it did not start.
    #[serde(flatten)]
    pub(super) report: Report,
    /// Measurements over time, for the page.
    #[serde(skip)]
    pub(super) history: History,
}

impl Entry {
    pub(super) fn new(state: State, report: Report, error: Option<String>) -> Self {
        Self {
            state,
            error,
            report,
            history: History::default(),
        }
    }

    /// Adds measurements over time.
    pub(super) fn with_history(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// Whether work on it at least started.
    pub(super) fn has_worked(&self) -> bool {
        match self.state {
            State::Done => true,
            State::AlreadyFinished | State::NotBegun => false,
            State::Failed | State::Interrupted => self.report.segments_total > 0,
        }
    }
}

/// Sums over all partitions.
#[derive(Debug, Default, Serialize)]
struct Totals {
    /// Selected partitions that exist.
    partitions: u64,
    done: u64,
    already_finished: u64,
    failed: u64,
    interrupted: u64,
    not_begun: u64,
    target_table: String,
    dry_run: bool,
    traces_loaded: u64,
    observations_processed: u64,
    events_inserted: u64,
    observations_without_trace: u64,
    written_by_earlier_attempts: u64,
    root_spans_inserted: Option<u64>,
    spans_in_experiments: Option<u64>,
    traces_remote: u64,
    traces_not_found: u64,
    errors: u64,
    retries: u64,
    /// Peak of the process, not a sum.
    peak_rss_bytes: u64,
    /// Sums, except the total, which is the process's.
    seconds: Seconds,
    /// Observations that this process handled per second of `seconds.stream`.
    observations_per_second: f64,
}

/// The summary of several partitions.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    partitions: Vec<Entry>,
    /// Months of the ranges that do not exist.
    months_without_rows: Vec<String>,
    totals: Totals,
    #[serde(skip)]
    without_rows_in_words: String,
}

impl Summary {
    /// Sums up `entries`; `took` is the time of the whole run.
    pub(super) fn new(entries: Vec<Entry>, without_rows: &[Partition], took: Duration) -> Self {
        Self {
            totals: Totals::of(&entries, took),
            partitions: entries,
            months_without_rows: without_rows.iter().map(Partition::to_string).collect(),
            without_rows_in_words: in_words(without_rows),
        }
    }
}

impl Totals {
    fn of(entries: &[Entry], took: Duration) -> Self {
        let mut totals = Self {
            partitions: entries.len() as u64,
            peak_rss_bytes: peak_resident_bytes(),
            ..Self::default()
        };
        let mut observations_now = 0.0;
        for entry in entries {
            totals.add(entry);
            let report = &entry.report;
            observations_now += report.observations_per_second * report.seconds.stream;
        }
        totals.seconds.total = took.as_secs_f64();
        if totals.seconds.stream > 0.0 {
            totals.observations_per_second = observations_now / totals.seconds.stream;
        }
        totals
    }

    fn add(&mut self, entry: &Entry) {
        let report = &entry.report;
        *match entry.state {
            State::Done => &mut self.done,
            State::AlreadyFinished => &mut self.already_finished,
            State::Failed => &mut self.failed,
            State::Interrupted => &mut self.interrupted,
            State::NotBegun => &mut self.not_begun,
        } += 1;
        if self.target_table.is_empty() {
            self.target_table.clone_from(&report.target_table);
        }
        self.dry_run |= report.dry_run;
        self.traces_loaded += report.traces_loaded;
        self.observations_processed += report.observations_processed;
        self.events_inserted += report.events_inserted;
        self.observations_without_trace += report.observations_without_trace;
        self.written_by_earlier_attempts += report.written_by_earlier_attempts;
        add(&mut self.root_spans_inserted, report.root_spans_inserted);
        add(&mut self.spans_in_experiments, report.spans_in_experiments);
        self.traces_remote += report.traces_remote;
        self.traces_not_found += report.traces_not_found;
        self.errors += u64::from(entry.state == State::Failed);
        self.retries += report.retries;
        self.seconds.load += report.seconds.load;
        self.seconds.stream += report.seconds.stream;
        self.seconds.root_spans += report.seconds.root_spans;
        self.seconds.insert += report.seconds.insert;
    }

    fn states_in_words(&self) -> String {
        let states = [
            (State::Done, self.done),
            (State::AlreadyFinished, self.already_finished),
            (State::Failed, self.failed),
            (State::Interrupted, self.interrupted),
            (State::NotBegun, self.not_begun),
        ];
        let words: Vec<String> = states
            .into_iter()
            .filter(|(_, number)| *number > 0)
            .map(|(state, number)| format!("{number} {}", state.in_words()))
            .collect();
        format!("{}: {}", self.partitions, words.join(", "))
    }

    fn lines(&self) -> [(&'static str, String); 13] {
        [
            ("Partitions", self.states_in_words()),
            ("Target table", self.target_table.clone()),
            ("Dry run", dry_run_in_words(self.dry_run)),
            ("Traces loaded", count(self.traces_loaded)),
            ("Observations processed", count(self.observations_processed)),
            ("Events inserted", count(self.events_inserted)),
            (
                "Observations without trace",
                at_least(
                    self.observations_without_trace,
                    self.written_by_earlier_attempts > 0,
                ),
            ),
            ("Traces of other months", count(self.traces_remote)),
            ("Errors", count(self.errors)),
            ("Retries", count(self.retries)),
            ("Time in total", seconds(self.seconds.total)),
            (
                "Throughput",
                format!(
                    "{} observations/s",
                    count(whole(self.observations_per_second))
                ),
            ),
            ("Peak memory", ByteSize(self.peak_rss_bytes).to_string()),
        ]
    }
}

/// Adds a number, if there is one.
fn add(sum: &mut Option<u64>, number: Option<u64>) {
    if let Some(number) = number {
        *sum.get_or_insert(0) += number;
    }
}

/// Column names of the table. The first two columns hold words, the others numbers.
const COLUMNS: [&str; 9] = [
    "Partition",
    "State",
    "Traces",
    "Observations",
    "Events",
    "Root spans",
    "Without trace",
    "Time",
    "Throughput",
];

impl Entry {
    fn cells(&self) -> [String; COLUMNS.len()] {
        let report = &self.report;
        [
            report.name(),
            self.state.in_words().to_owned(),
            count(report.traces_loaded),
            count(report.observations_processed),
            count(report.events_inserted),
            report.root_spans_inserted.map_or("-".to_owned(), count),
            at_least(
                report.observations_without_trace,
                report.is_counted_in_part(),
            ),
            seconds(report.seconds.total),
            format!("{}/s", count(whole(report.observations_per_second))),
        ]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = vec![COLUMNS.map(str::to_owned)];
        table.extend(self.partitions.iter().map(Entry::cells));
        for line in aligned(&table, 2) {
            writeln!(f, "{line}")?;
        }
        writeln!(f)?;
        for error in self.partitions.iter().filter_map(|e| e.error.as_ref()) {
            writeln!(f, "{error}\n")?;
        }
        if !self.without_rows_in_words.is_empty() {
            let skipped = self.without_rows_in_words.clone();
            write_lines(f, SUMMARY_WIDTH, [("Months without rows", skipped)])?;
        }
        let mut reports = self.partitions.iter().map(|entry| &entry.report);
        if reports.any(Report::left_segments_under_way) {
            let line = [("Unfinished segments", UNDER_WAY.to_owned())];
            write_lines(f, SUMMARY_WIDTH, line)?;
        }
        let totals = &self.totals;
        write_summary(
            f,
            &totals.lines(),
            totals.root_spans_inserted,
            totals
                .spans_in_experiments
                .map(|spans| at_least(spans, totals.written_by_earlier_attempts > 0)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(partition: &str, state: State, observations: u64) -> Entry {
        let report = Report {
            partition: partition.to_owned(),
            target_table: "default.events_full".to_owned(),
            observations_processed: observations,
            seconds: Seconds {
                stream: 2.0,
                ..Seconds::default()
            },
            observations_per_second: observations as f64 / 2.0,
            ..Report::default()
        };
        let error = (state == State::Failed).then(|| format!("partition {partition}: no room"));
        Entry::new(state, report, error)
    }

    fn summary() -> Summary {
        let entries = vec![
            entry("202406", State::AlreadyFinished, 0),
            entry("202405", State::Done, 1_234_567),
            entry("202404", State::Failed, 5),
            entry("202401", State::NotBegun, 0),
        ];
        let without_rows = ["202403", "202402"].map(|month| month.parse().unwrap());
        Summary::new(entries, &without_rows, Duration::from_secs(9))
    }

    #[test]
    fn the_table_has_a_row_for_each_partition_and_the_totals_below() {
        let text = summary().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("Partition  State "));
        for (line, words) in [
            (1, ["202406", "already finished", " 0 "]),
            (2, ["202405", "done", " 1,234,567 "]),
            (3, ["202404", "failed", " 5 "]),
            (4, ["202401", "not started", " 0 "]),
        ] {
            assert_eq!(lines[line].len(), lines[0].len());
            for word in words {
                assert!(lines[line].contains(word), "{text}");
            }
        }
        assert!(text.contains("\npartition 202404: no room\n"));
        assert!(text.contains("\nMonths without rows         202402..202403\n"));
        assert!(text.contains("4: 1 done, 1 already finished, 1 failed, 1 not started"));
        assert!(text.contains("\nObservations processed      1,234,572\n"));
    }

    #[test]
    fn segments_under_way_are_said_not_to_be_counted() {
        let mut interrupted = entry("202405", State::Interrupted, 5);
        assert!(
            !Summary::new(vec![], &[], Duration::ZERO)
                .to_string()
                .contains(UNDER_WAY)
        );
        interrupted.report.ended_with = Some("interrupted".to_owned());
        interrupted.report.segments_total = 2;
        let text = Summary::new(vec![interrupted], &[], Duration::ZERO).to_string();
        let line = format!("\nUnfinished segments         {UNDER_WAY}\n");
        assert!(text.contains(&line), "{text}");
    }

    #[test]
    fn the_json_holds_a_report_for_each_partition_and_the_totals() {
        let json = serde_json::to_value(summary()).unwrap();
        assert_eq!(json["partitions"][2]["partition"], "202404");
        assert_eq!(json["partitions"][2]["state"], "failed");
        assert_eq!(json["partitions"][2]["error"], "partition 202404: no room");
        assert_eq!(json["partitions"][2]["observations_processed"], 5);
        assert_eq!(json["partitions"][3]["state"], "not_begun");
        assert_eq!(
            json["months_without_rows"],
            serde_json::json!(["202403", "202402"])
        );
        assert_eq!(json["totals"]["failed"], 1);
        assert_eq!(json["totals"]["seconds"]["total"], 9.0);
        assert_eq!(json["totals"]["observations_processed"], 1_234_572);
        let rate = json["totals"]["observations_per_second"].as_f64().unwrap();
        assert!((rate - 1_234_572.0 / 8.0).abs() < 1e-6, "{rate}");
    }
}
