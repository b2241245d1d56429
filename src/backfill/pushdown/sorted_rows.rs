//! The rows of a slice by what is to become of them.

use super::key_list::KeyList;
use crate::state::counts::LeftOut;
use crate::trace_store::HashKey;

/// The rows of a slice, sorted.
#[derive(Debug, Default)]
pub(super) struct SortedRows {
    /// Rows read.
    pub read: u64,
    /// Rows for the server.
    pub to_write: u64,
    /// Of these, rows whose trace is nowhere.
    pub without_trace: u64,
    /// Rows that are not to be written.
    pub left_out: LeftOut,
    /// The traces to join.
    pub near: KeyList,
    /// Traces that are nowhere or deleted, of rows for the server.
    pub gone: KeyList,
    /// Keys of rows that the server must not take although their trace is among these: those left out,
    /// and those in experiments.
    pub not_by_server: KeyList,
    /// Rows for the embedded pipeline, by their own key.
    pub apart_rows: Vec<HashKey>,
    /// Traces all of whose rows are for the embedded pipeline.
    pub apart_traces: Vec<HashKey>,
    /// The keys of those rows.
    pub rows_of_apart_traces: Vec<HashKey>,
}

impl SortedRows {
    /// Number of rows for the embedded pipeline.
    pub(super) fn apart(&self) -> u64 {
        (self.apart_rows.len() + self.rows_of_apart_traces.len()) as u64
    }
}
