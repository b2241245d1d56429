//! The forecast as text and JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::disk::{Growth, RootSpans};
use super::engines::Engines;
use super::sample::Sample;
use super::time::Time;
use crate::clickhouse::StoredBytes;
use crate::memory::ByteSize;
use crate::progress::words::{about, in_about, plural, write_lines};

/// What a run reads from one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct TableToRead {
    /// Rows in the partition's parts, including unmerged versions.
    pub rows: u64,
    /// Number of parts.
    pub parts: u64,
    /// Size of the columns to read; for small parts, of all columns.
    pub bytes: StoredBytes,
}

/// Disk space for the trace store on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TraceStoreRoom {
    /// The state directory.
    pub state_dir: String,
    /// Maximum size of the store of a run that is not killed, in bytes.
    pub needed_bytes: u64,
    /// About how many bytes more it takes to resume a killed run.
    pub resume_bytes: u64,
    /// Free bytes there, if known.
    pub free_bytes: Option<u64>,
}

/// Disk space for the events on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ServerRoom {
    /// Growth of all tables together, in bytes.
    pub needed_bytes: u64,
    /// Growth per table: the target and the tables that views fill from it.
    pub tables: Vec<Growth>,
    /// Disks the target may use, if known.
    pub disks: Vec<String>,
    /// Free bytes on them, if known.
    pub free_bytes: Option<u64>,
}

/// An estimated run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Forecast {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// Target table, as `database.table`.
    pub target_table: String,
    /// The server's version.
    pub clickhouse_version: String,
    /// Observations to read.
    pub observations: TableToRead,
    /// Traces to read, including the days before and after the month: estimated rows, and the
    /// month's parts.
    pub traces: TableToRead,
    /// Number of days before and after the month.
    pub trace_margin_days: u16,
    /// Events of the partition in the target, including versions. `None` if this user may not read
    /// it.
    pub events_there: Option<u64>,
    /// Root spans to write, if any.
    pub root_spans: Option<RootSpans>,
    /// Number of observation segments.
    pub segments: u64,
    /// Rows in the largest segment.
    pub largest_segment_rows: u64,
    /// Uncompressed bytes to send.
    pub write_bytes: u64,
    /// Disk space for the trace store.
    pub trace_store: TraceStoreRoom,
    /// Disk space for the events.
    pub server_disk: ServerRoom,
    /// The measurements.
    pub sample: Sample,
    /// Estimated duration.
    pub time: Time,
    /// What each engine takes.
    pub engines: Engines,
    /// Remarks.
    pub notes: Vec<String>,
    /// Those of them that are about this month alone.
    #[serde(skip)]
    pub own_notes: Vec<String>,
    /// Problems the run would have.
    pub warnings: Vec<String>,
}

impl TraceStoreRoom {
    /// The warning if the trace store does not fit.
    pub(crate) fn warning(&self) -> Option<String> {
        let free = self.free_bytes.filter(|&free| free < self.needed_bytes)?;
        Some(format!(
            "the trace store can take {}, but {} has only {} free: set --state-dir to a larger \
             disk",
            ByteSize(self.needed_bytes),
            self.state_dir,
            ByteSize(free)
        ))
    }
}

impl ServerRoom {
    /// The warning if the events do not fit.
    pub(crate) fn warning(&self) -> Option<String> {
        let free = self.free_bytes.filter(|&free| free < self.needed_bytes)?;
        Some(format!(
            "the events will take about {} on the server, but {} has only {} free: make room \
             before the run",
            ByteSize(self.needed_bytes),
            self.disks.join(" and "),
            ByteSize(free)
        ))
    }
}

/// Free space, if known.
fn room(free: Option<u64>, place: &str) -> String {
    match free {
        Some(free) => format!("{} free {place}", ByteSize(free)),
        None => format!("free space {place} unknown"),
    }
}

impl TableToRead {
    fn in_words(&self, others: &str) -> String {
        match self.rows {
            0 => "none".to_owned(),
            rows => format!("{} rows{others}", HumanCount(rows)),
        }
    }
}

fn bytes_in_words(bytes: StoredBytes) -> String {
    let [compressed, uncompressed] = [bytes.compressed, bytes.uncompressed].map(ByteSize);
    format!("{compressed} on the server's disk, {uncompressed} uncompressed")
}

impl Forecast {
    fn rows(&self) -> Vec<(String, String)> {
        let traces = match self.trace_margin_days {
            0 => String::new(),
            days => format!(
                ", including {} before and after the month",
                plural(days.into(), "day")
            ),
        };
        let segments = format!(
            " in {}, read as {} of up to {} rows",
            plural(self.observations.parts, "part"),
            plural(self.segments, "segment"),
            HumanCount(self.largest_segment_rows)
        );
        let store = &self.trace_store;
        let server = &self.server_disk;
        let rows = [
            ("Partition", self.partition.clone()),
            (
                "Target table",
                format!(
                    "{}, ClickHouse {}",
                    self.target_table, self.clickhouse_version
                ),
            ),
            (
                "Existing events",
                match self.events_there {
                    None => "unknown".to_owned(),
                    Some(0) => "none in this month".to_owned(),
                    Some(rows) => format!("{} rows in this month", HumanCount(rows)),
                },
            ),
            ("Observations", self.observations.in_words(&segments)),
            ("  to read", bytes_in_words(self.observations.bytes)),
            ("Traces", self.traces.in_words(&traces)),
            ("  to read", bytes_in_words(self.traces.bytes)),
            (
                "Events to write",
                format!("about {} uncompressed", ByteSize(self.write_bytes)),
            ),
            (
                "Trace store disk",
                format!(
                    "up to {}, about {} more to resume after a kill; {}",
                    ByteSize(store.needed_bytes),
                    ByteSize(store.resume_bytes),
                    room(store.free_bytes, &format!("in {}", store.state_dir))
                ),
            ),
            (
                "Server disk",
                format!(
                    "about {}; {}",
                    ByteSize(server.needed_bytes),
                    room(
                        server.free_bytes,
                        &format!("on {}", server.disks_in_words())
                    )
                ),
            ),
        ];
        let mut rows: Vec<_> = rows.map(|(name, value)| (name.to_owned(), value)).into();
        if let Some(root_spans) = self.root_spans {
            let segments = plural(root_spans.segments, "segment");
            let of_traces = [
                (
                    "Root spans",
                    format!("{} rows in {segments}", HumanCount(root_spans.rows)),
                ),
                ("  to read", bytes_in_words(root_spans.bytes)),
            ];
            let of_traces = of_traces.map(|(name, value)| (name.to_owned(), value));
            let before_writing = rows.iter().position(|(name, _)| name == "Events to write");
            let place = before_writing.unwrap_or(rows.len());
            rows.splice(place..place, of_traces);
        }
        if server.tables.len() > 1 {
            rows.extend(server.tables.iter().map(|table| {
                let bytes = ByteSize(table.bytes);
                (
                    "  of this".to_owned(),
                    format!("{bytes} for {}", table.table),
                )
            }));
        }
        rows.push(("Estimated time".to_owned(), self.time_in_words()));
        rows.extend(self.time.steps.iter().map(|step| {
            let seconds = step.seconds.map_or("unknown".to_owned(), about);
            let name = format!("  {}", step.name);
            (name, format!("{seconds} ({})", step.basis))
        }));
        rows.extend(self.engines.lines());
        rows
    }

    fn time_in_words(&self) -> String {
        self.time
            .total_seconds
            .map_or("unknown".to_owned(), in_about)
    }
}

impl ServerRoom {
    fn disks_in_words(&self) -> String {
        match self.disks.as_slice() {
            [] => "the server".to_owned(),
            [disk] => format!("its disk {disk}"),
            disks => format!("its disks {}", disks.join(" and ")),
        }
    }
}

impl Forecast {
    /// The remarks that other months are likely to share.
    pub(super) fn shared_notes(&self) -> impl Iterator<Item = &String> {
        let notes = self.notes.iter();
        notes.filter(|note| !self.own_notes.contains(note))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, notes: &[String]) -> fmt::Result {
        write_lines(f, 27, self.rows())?;
        for note in notes {
            write!(f, "\nnote: {note}")?;
        }
        for warning in &self.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &self.notes)
    }
}

/// One month of several: without what they share, which [`Totals`](super::Totals) says once.
pub(crate) struct OneOfSeveral<'a>(pub &'a Forecast);

impl fmt::Display for OneOfSeveral<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, &self.0.own_notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_what_to_do() {
        let store = |free_bytes| TraceStoreRoom {
            state_dir: "/data/state".to_owned(),
            needed_bytes: 3 << 30,
            resume_bytes: 1 << 30,
            free_bytes,
        };
        assert_eq!(store(None).warning(), None);
        assert_eq!(store(Some(3 << 30)).warning(), None);
        let warning = store(Some(1 << 30)).warning().unwrap();
        for word in ["3.0 GiB", "1.0 GiB", "/data/state", "--state-dir"] {
            assert!(warning.contains(word), "{word}: {warning}");
        }
        let server = |free_bytes| ServerRoom {
            needed_bytes: 5 << 30,
            tables: Vec::new(),
            disks: vec!["hot".to_owned(), "cold".to_owned()],
            free_bytes,
        };
        assert_eq!(server(None).warning(), None);
        assert_eq!(server(Some(5 << 30)).warning(), None);
        let warning = server(Some(2 << 30)).warning().unwrap();
        for word in ["5.0 GiB", "2.0 GiB", "hot and cold", "make room"] {
            assert!(warning.contains(word), "{word}: {warning}");
        }
    }
}
