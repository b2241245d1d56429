//! What a run would do, as text and as JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::disk::{Growth, RootSpans};
use super::sample::Sample;
use super::time::Time;
use crate::clickhouse::StoredBytes;
use crate::memory::ByteSize;
use crate::progress::words::{about, plural, write_lines};

/// What is to be read of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct TableToRead {
    /// Rows in the parts of the partition, versions that are not merged yet included.
    pub rows: u64,
    /// Parts of the partition.
    pub parts: u64,
    /// Bytes of the columns that are read; of small parts, of all columns.
    pub bytes: StoredBytes,
}

/// What the trace store needs on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TraceStoreRoom {
    /// The state directory.
    pub state_dir: String,
    /// Bytes that the store can take, at most.
    pub needed_bytes: u64,
    /// Bytes that are free there, where it is known.
    pub free_bytes: Option<u64>,
}

/// What the events need on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ServerRoom {
    /// Bytes that all tables together will grow by.
    pub needed_bytes: u64,
    /// By how much each table will grow: the target, and what views fill from it.
    pub tables: Vec<Growth>,
    /// Names of the disks that the target may use, where they are known.
    pub disks: Vec<String>,
    /// Bytes that are free on them, where it is known.
    pub free_bytes: Option<u64>,
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Forecast {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// `database.table` that would be written to.
    pub target_table: String,
    /// The server's version.
    pub clickhouse_version: String,
    /// Observations to be read.
    pub observations: TableToRead,
    /// Traces to be read, those of the days before and after the month included: about so
    /// many rows, in so many parts of the month itself.
    pub traces: TableToRead,
    /// How many days before and after the month that are.
    pub trace_margin_days: u16,
    /// Events of the partition that the target has, versions included; none where
    /// this user may not know it.
    pub events_there: Option<u64>,
    /// Root spans to be written, if they are wanted.
    pub root_spans: Option<RootSpans>,
    /// Segments of observations in the plan.
    pub segments: u64,
    /// Rows of the largest of them.
    pub largest_segment_rows: u64,
    /// Bytes to be written, as they travel, uncompressed.
    pub write_bytes: u64,
    /// What the trace store needs.
    pub trace_store: TraceStoreRoom,
    /// What the events need.
    pub server_disk: ServerRoom,
    /// What was measured.
    pub sample: Sample,
    /// How long it will take.
    pub time: Time,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// What would not work.
    pub warnings: Vec<String>,
}

impl TraceStoreRoom {
    /// Why the store does not fit, if it does not.
    pub(crate) fn warning(&self) -> Option<String> {
        let free = self.free_bytes.filter(|&free| free < self.needed_bytes)?;
        Some(format!(
            "the trace store can need {}, and {} has {} left: name a state directory on a larger \
             disk with --state-dir",
            ByteSize(self.needed_bytes),
            self.state_dir,
            ByteSize(free)
        ))
    }
}

impl ServerRoom {
    /// Why the events do not fit, if they do not.
    pub(crate) fn warning(&self) -> Option<String> {
        let free = self.free_bytes.filter(|&free| free < self.needed_bytes)?;
        Some(format!(
            "the events will need about {} of the server's disk, and {} has {} left: make room \
             before the run",
            ByteSize(self.needed_bytes),
            self.disks.join(" and "),
            ByteSize(free)
        ))
    }
}

/// So many bytes, or that nobody knows.
fn room(free: Option<u64>, place: &str) -> String {
    match free {
        Some(free) => format!("{} free {place}", ByteSize(free)),
        None => format!("free {place} is not known"),
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
                ", {} before and after the month included",
                plural(days.into(), "day")
            ),
        };
        let segments = format!(
            " in {}, to be read as {} of up to {} rows",
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
                "Events there already",
                match self.events_there {
                    None => "not known".to_owned(),
                    Some(0) => "none of this month".to_owned(),
                    Some(rows) => format!("{} rows of this month", HumanCount(rows)),
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
                "Disk for the trace store",
                format!(
                    "up to {}; {}",
                    ByteSize(store.needed_bytes),
                    room(store.free_bytes, &format!("in {}", store.state_dir))
                ),
            ),
            (
                "Disk on the server",
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
                    "  of which".to_owned(),
                    format!("{bytes} for {}", table.table),
                )
            }));
        }
        rows.push(("Time (an estimate)".to_owned(), self.time_in_words()));
        rows.extend(self.time.steps.iter().map(|step| {
            let seconds = step.seconds.map_or("not known".to_owned(), about);
            let name = format!("  {}", step.name);
            (name, format!("{seconds} ({})", step.basis))
        }));
        rows
    }

    fn time_in_words(&self) -> String {
        self.time
            .total_seconds
            .map_or("not known".to_owned(), |total| {
                format!("about {}", about(total))
            })
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

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, 27, self.rows())?;
        for note in &self.notes {
            write!(f, "\nnote: {note}")?;
        }
        for warning in &self.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
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
