//! Result rows of the statements in `statements.rs`.

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::partition::Day;

/// Row count of a piece.
#[derive(Debug, Row, Deserialize)]
pub(super) struct PieceRows {
    /// The project.
    pub project: ByteBuf,
    /// The day.
    pub day: Day,
    /// The count.
    pub row_count: u64,
}

/// Event count of a piece.
#[derive(Debug, Row, Deserialize)]
pub(super) struct EventRows {
    /// The project.
    pub project: ByteBuf,
    /// The day.
    pub day: Day,
    /// The count.
    pub row_count: u64,
    /// How many of them are live.
    pub live: u64,
}

/// The hash of a project's id.
#[derive(Debug, Row, Deserialize)]
pub(super) struct ProjectHash {
    /// The project.
    pub project: ByteBuf,
    /// The hash of its id.
    pub hash: u64,
}

/// An observation with versions of several types or days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Row, Deserialize)]
pub(super) struct Versions {
    /// The hash of its project's id.
    pub project: u64,
    /// The hash of its trace's id.
    pub trace: u64,
    /// The hash of all its ids.
    pub observation: u64,
    /// The hash of the winning version.
    pub counting: u64,
    /// The first day it has a version on.
    pub first: Day,
    /// The last day it has a version on.
    pub last: Day,
}

/// A number of rows, with the hashes of some.
#[derive(Debug, Clone, Default, Row, Deserialize)]
pub(super) struct Counted {
    /// The number.
    pub row_count: u64,
    /// Key hashes of some of them.
    pub some: Vec<u64>,
}

/// A number.
#[derive(Debug, Clone, Copy, Row, Deserialize)]
pub(super) struct Number {
    /// The number.
    pub number: u64,
}

/// The key of an event to show.
#[derive(Debug, Clone, Row, Deserialize)]
pub(super) struct KeyRow {
    /// The project.
    pub project: ByteBuf,
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// Its start, in microseconds.
    pub start: i64,
    /// How many rows have this key.
    pub row_count: u64,
}

impl KeyRow {
    /// Its key.
    pub(super) fn key(&self) -> EventKey {
        EventKey {
            project: self.project.clone(),
            trace_id: self.trace_id.clone(),
            span_id: self.span_id.clone(),
            start: self.start,
        }
    }
}

/// A table's row width and number of parts.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Widths {
    /// Number of parts.
    pub parts: u64,
    /// Uncompressed bytes per row, in the part with the highest average.
    pub row_bytes: u64,
}

/// The start of a day.
#[derive(Debug, Row, Deserialize)]
pub(super) struct DayStart {
    /// Milliseconds since 1970.
    pub start: i64,
}

/// A trace with versions on several days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub(super) struct MovedTrace {
    /// The hash of its id.
    pub hash: u64,
    /// The first of those days.
    pub first: Day,
    /// The last of those days.
    pub last: Day,
    /// The winning version's day.
    pub latest: Day,
}

/// A day with a version of a trace.
#[derive(Debug, Row, Deserialize)]
pub(super) struct VersionDay {
    /// The hash of its id.
    pub hash: u64,
    /// The day.
    pub day: Day,
}

/// Any id.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Id {
    /// The id.
    pub id: ByteBuf,
}

/// Counts and sums of hashes over some rows of a piece, independent of row order.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub(super) struct Sums {
    /// The project.
    pub project: ByteBuf,
    /// The day.
    pub day: Day,
    /// The rows' class; see [`Class`](super::scope::Class).
    pub class: u8,
    /// The slice of the piece.
    pub slice: u64,
    /// Number of rows.
    pub row_count: u64,
    /// Sum over what comes from the observation alone.
    pub own_sum: u64,
    /// The same, as exclusive or.
    pub own_xor: u64,
    /// Sum over what depends on the trace.
    pub trace_sum: u64,
    /// The same, as exclusive or.
    pub trace_xor: u64,
    /// Observations without a trace.
    pub without_trace: u64,
    /// Root spans expected from traces.
    pub of_traces: u64,
}

/// A row of one side: start and `event_ts` in microseconds, two hashes, and a flag.
pub(super) type SideRow = (i64, i64, u64, u64, u8);

/// A span that differs between the two sides.
#[derive(Debug, Clone, Row, Deserialize)]
pub(super) struct SpanRow {
    /// The project.
    pub project: ByteBuf,
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// Expected rows, flagged if they come from a trace.
    pub expected: Vec<SideRow>,
    /// Actual rows.
    pub events: Vec<SideRow>,
    /// `event_ts` of its latest deletion in the target, or 0.
    pub deleted_at: i64,
}

/// An observation with a span's id, over all its versions.
#[derive(Debug, Clone, Row, Deserialize)]
pub(super) struct FoundObservation {
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// `event_ts` of the latest version, in microseconds.
    pub event_ts: i64,
    /// The start of the latest version, in microseconds.
    pub start: i64,
    /// Whether the latest version is a deletion.
    pub is_deleted: u8,
    /// The starts of all versions.
    pub starts: Vec<i64>,
    /// Number of distinct days and types among the versions.
    pub places: u64,
}

/// All compared columns of a row.
#[derive(Debug, Clone, Row, Deserialize)]
pub(crate) struct Details {
    /// The columns' hashes.
    pub hashes: Vec<u64>,
    /// The columns' texts, as shown.
    pub texts: Vec<Option<ByteBuf>>,
}

/// An event's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EventKey {
    /// The project.
    pub project: ByteBuf,
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// Its start, in microseconds since 1970.
    pub start: i64,
}
