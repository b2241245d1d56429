//! A month on the page.

use super::chart::{Chart, of_clock};
use super::charts::{Figures, charts, figures};
use super::columns::{Column, Columns};
use super::fact::Tone;
use crate::memory::numbers::whole;
use crate::progress::words::{about, at_least, count};
use crate::state::finding::Finding;
use crate::state::history::History;
use crate::state::report::Report;

/// A month on the page.
#[derive(Debug)]
pub(crate) struct Month {
    /// `YYYYMM`
    pub partition: String,
    /// State of its run, in a word or two.
    pub state: String,
    /// How that state is to be judged.
    pub tone: Tone,
    /// Whether the run is finished.
    pub is_done: bool,
    /// Target as `database.table`, if known.
    pub target: Option<String>,
    /// Traces in the store.
    pub traces: u64,
    /// Processed observations.
    pub observations: u64,
    /// Events of observations that the server acknowledged.
    pub events_of_observations: u64,
    /// Root spans that the server acknowledged.
    pub root_spans: u64,
    /// Observations whose trace was not found.
    pub without_trace: u64,
    /// Whether there may be more of these: what an interrupted process had written is not among them.
    pub is_counted_in_part: bool,
    /// Segments done, and all segments.
    pub segments: (u64, u64),
    /// What is left to do.
    pub left_to_do: Vec<String>,
    /// Report of its last process.
    pub summary: Option<Report>,
    /// Results of verify and repair, oldest first.
    pub findings: Vec<Finding>,
    /// Whether some of these cannot be read.
    pub is_partly_unreadable: bool,
    /// Time of the last write, in seconds since 1970. It makes earlier findings obsolete.
    pub written_at: u64,
    columns: Columns,
    seconds_at_work: f64,
    /// Number of early processes whose measurements were dropped.
    pub dropped: u64,
}

impl Month {
    /// A month with nothing but measurements.
    pub(crate) fn new(partition: String, state: String, tone: Tone, history: &History) -> Self {
        Self {
            partition,
            state,
            tone,
            is_done: false,
            target: None,
            traces: 0,
            observations: 0,
            events_of_observations: 0,
            root_spans: 0,
            without_trace: 0,
            is_counted_in_part: false,
            segments: (0, 0),
            left_to_do: Vec::new(),
            summary: None,
            findings: Vec::new(),
            is_partly_unreadable: false,
            written_at: 0,
            columns: Columns::of(history),
            seconds_at_work: history.seconds_at_work(),
            dropped: history.dropped,
        }
    }

    /// Adds the numbers of a report.
    pub(crate) fn with_report(mut self, report: Report) -> Self {
        self.traces = report.traces_loaded;
        self.observations = report.observations_processed;
        self.events_of_observations = report.events_inserted;
        self.root_spans = report.root_spans_inserted.unwrap_or(0);
        self.without_trace = report.observations_without_trace;
        self.is_counted_in_part = report.is_counted_in_part();
        self.segments = (report.segments_done, report.segments_total);
        self.target = Some(report.target_table.clone());
        self.summary = Some(report);
        self
    }

    /// Events that the server acknowledged, root spans included.
    pub(super) fn events(&self) -> u64 {
        self.events_of_observations + self.root_spans
    }

    /// The last finding, unless something was written since.
    pub(crate) fn last_said(&self) -> Option<&Finding> {
        let last = self.findings.last();
        last.filter(|finding| finding.second() >= self.written_at)
    }

    /// The result of the last verify, unless something was written or repaired since.
    pub(super) fn verified(&self) -> Option<Result<(), &str>> {
        let last = self.last_said().filter(|last| last.command == "verify")?;
        Some(last.error.as_deref().map_or(Ok(()), Err))
    }

    /// The same in words.
    fn verified_in_words(&self) -> &'static str {
        match (self.verified(), self.findings.is_empty()) {
            (Some(Ok(())), _) => "equal",
            (Some(Err(_)), _) => "not equal",
            (None, _) if self.is_partly_unreadable => "unknown",
            (None, false) => "outdated",
            (None, true) => "not yet",
        }
    }

    pub(super) fn seconds_at_work(&self) -> f64 {
        self.seconds_at_work
    }

    pub(super) fn peak_bytes(&self) -> u64 {
        let measured = self.columns.columns.iter();
        let measured = measured.map(|column| column.resident_bytes).max();
        let reported = self.summary.as_ref().map(|report| report.peak_rss_bytes);
        measured.max(reported).unwrap_or(0)
    }

    /// Rows processed during the measurements.
    pub(super) fn rows_at_work(&self) -> u64 {
        self.columns.columns.iter().map(|column| column.rows).sum()
    }

    /// Seconds at work in which events were written.
    pub(super) fn seconds_of_writing(&self) -> f64 {
        let columns = self.columns.columns.iter();
        columns
            .filter(|column| column.rows > 0)
            .map(Column::seconds_at_work)
            .sum()
    }

    /// Its cells in the table of months, after the state.
    pub(super) fn cells(&self) -> [String; 8] {
        let seconds = self.seconds_of_writing();
        [
            count(self.traces),
            count(self.observations),
            count(self.events()),
            at_least(self.without_trace, self.is_counted_in_part),
            format!("{} of {}", count(self.segments.0), count(self.segments.1)),
            about(self.seconds_at_work()),
            match seconds > 0.0 {
                true => format!("{}/s", count(whole(self.rows_at_work() as f64 / seconds))),
                false => "–".to_owned(),
            },
            self.verified_in_words().to_owned(),
        ]
    }

    pub(super) fn charts(&self) -> Vec<Chart> {
        charts(&self.columns)
    }

    pub(super) fn figures(&self) -> Vec<Figures> {
        figures(&self.columns)
    }
}

/// The time of a finding.
pub(super) fn said_at(finding: &Finding) -> String {
    of_clock(finding.second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_in_part_is_said_to_be_at_least_so_many() {
        let cells = |written_by_earlier_attempts| {
            let month = Month::new(
                "202406".to_owned(),
                "finished".to_owned(),
                Tone::Good,
                &History::default(),
            );
            let report = Report {
                observations_without_trace: 1_234,
                written_by_earlier_attempts,
                ..Report::default()
            };
            month.with_report(report).cells()
        };
        assert!(cells(0).contains(&"1,234".to_owned()));
        assert!(cells(1).contains(&"at least 1,234".to_owned()));
    }
}
