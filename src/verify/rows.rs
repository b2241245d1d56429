//! What the statements of `statements.rs` yield.

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::partition::Day;

/// A count of rows of one project and day.
#[derive(Debug, Row, Deserialize)]
pub(super) struct PieceRows {
    /// The project.
    pub project: ByteBuf,
    /// The day.
    pub day: Day,
    /// The count.
    pub row_count: u64,
}

/// A count of events of one project and day.
#[derive(Debug, Row, Deserialize)]
pub(super) struct EventRows {
    /// The project.
    pub project: ByteBuf,
    /// The day.
    pub day: Day,
    /// The count.
    pub row_count: u64,
    /// How many of them something live wrote.
    pub live: u64,
}

/// The hash of a project's id.
#[derive(Debug, Row, Deserialize)]
pub(super) struct ProjectHash {
    /// The project.
    pub project: ByteBuf,
    /// Of its id.
    pub hash: u64,
}

/// An observation whose versions are of several types or days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Row, Deserialize)]
pub(super) struct Versions {
    /// The hash of its project's id.
    pub project: u64,
    /// The hash of its trace's id.
    pub trace: u64,
    /// The hash of all its ids.
    pub observation: u64,
    /// The hash of the version that counts.
    pub counting: u64,
    /// The first day on which it has a version.
    pub first: Day,
    /// The last one.
    pub last: Day,
}

/// A number of rows, and the hashes of some of them.
#[derive(Debug, Clone, Default, Row, Deserialize)]
pub(super) struct Counted {
    /// The number.
    pub row_count: u64,
    /// Hashes of the keys of some of them.
    pub some: Vec<u64>,
}

/// A number.
#[derive(Debug, Clone, Copy, Row, Deserialize)]
pub(super) struct Number {
    /// The number.
    pub number: u64,
}

/// What tells one event from another, of one that is shown.
#[derive(Debug, Clone, Row, Deserialize)]
pub(super) struct KeyRow {
    /// The project.
    pub project: ByteBuf,
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// When it started, in microseconds.
    pub start: i64,
    /// How many rows there are of it.
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

/// How wide the rows of a table are, and in how many parts they lie.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Widths {
    /// The parts.
    pub parts: u64,
    /// Uncompressed bytes of a row, in the part where it has most on average.
    pub row_bytes: u64,
}

/// When a day begins.
#[derive(Debug, Row, Deserialize)]
pub(super) struct DayStart {
    /// Milliseconds since 1970.
    pub start: i64,
}

/// A trace that has versions on several days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub(super) struct MovedTrace {
    /// Of its id.
    pub hash: u64,
    /// The first of these days.
    pub first: Day,
    /// The last of them.
    pub last: Day,
    /// The day of the version that counts.
    pub latest: Day,
}

/// A day on which a trace has a version.
#[derive(Debug, Row, Deserialize)]
pub(super) struct VersionDay {
    /// Of its id.
    pub hash: u64,
    /// The day.
    pub day: Day,
}

/// An id, of whatever.
#[derive(Debug, Row, Deserialize)]
pub(super) struct Id {
    /// The id.
    pub id: ByteBuf,
}

/// Counts and sums of hashes over some rows of one piece. The sums do not depend
/// on the order of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub(super) struct Sums {
    /// The project.
    pub project: ByteBuf,
    /// The day.
    pub day: Day,
    /// What kind of rows these are: see [`Class`](super::scope::Class).
    pub class: u8,
    /// Which slice of the piece it is.
    pub slice: u64,
    /// Rows.
    pub row_count: u64,
    /// Over what comes from the observation alone.
    pub own_sum: u64,
    /// The same, as an exclusive or.
    pub own_xor: u64,
    /// Over what the trace has a part in.
    pub trace_sum: u64,
    /// The same, as an exclusive or.
    pub trace_xor: u64,
    /// Observations without a trace.
    pub without_trace: u64,
    /// Root spans that are expected because of a trace.
    pub of_traces: u64,
}

/// A row of one side: start and `event_ts` in microseconds, its two hashes, and a
/// flag.
pub(super) type SideRow = (i64, i64, u64, u64, u8);

/// A span, of which the two sides are not the same.
#[derive(Debug, Clone, Row, Deserialize)]
pub(super) struct SpanRow {
    /// The project.
    pub project: ByteBuf,
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// What is expected of it, and whether because of a trace.
    pub expected: Vec<SideRow>,
    /// What there is.
    pub events: Vec<SideRow>,
    /// `event_ts` of its latest deletion in the target; 0 where there is none.
    pub deleted_at: i64,
}

/// Where an observation with the id of a span is, of all its versions.
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
    /// On how many days, and of how many types, there are versions of it.
    pub places: u64,
}

/// All compared columns of one row.
#[derive(Debug, Clone, Row, Deserialize)]
pub(crate) struct Details {
    /// The hash of each.
    pub hashes: Vec<u64>,
    /// What is shown of each.
    pub texts: Vec<Option<ByteBuf>>,
}

/// What tells one event from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EventKey {
    /// The project.
    pub project: ByteBuf,
    /// The trace.
    pub trace_id: ByteBuf,
    /// The span.
    pub span_id: ByteBuf,
    /// When it started, in microseconds since 1970.
    pub start: i64,
}
