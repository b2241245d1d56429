//! Counts in the checkpoint. If you change one of these types, increase the version of the checkpoint's
//! format.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// The counts of one segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCounts {
    /// Observations enriched, or traces with a root span.
    pub observations: u64,
    /// Rows that the server acknowledged, including those of failed attempts.
    pub inserted: u64,
    /// Observations whose trace was not found.
    pub without_trace: u64,
    /// Spans that belong to an experiment.
    pub in_experiments: u64,
    /// Outdated versions of traces, which get no root span.
    pub superseded: u64,
    /// Rows not written.
    pub left_out: LeftOut,
}

impl AddAssign for SegmentCounts {
    fn add_assign(&mut self, other: Self) {
        self.observations += other.observations;
        self.inserted += other.inserted;
        self.without_trace += other.without_trace;
        self.in_experiments += other.in_experiments;
        self.superseded += other.superseded;
        self.left_out += other.left_out;
    }
}

/// Rows not written, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The observation has a newer version, or is deleted.
    pub superseded: u64,
    /// Langfuse's own row in the target is at least as new.
    pub live: u64,
    /// A backfill's row from before the run is at least as new.
    pub already_there: u64,
    /// This run wrote the row in a failed attempt.
    pub written_before: u64,
    /// The trace has a root span from Langfuse.
    pub live_root: u64,
    /// An observation has the id of the trace's root span.
    pub root_observation: u64,
    /// The row changed so recently that Langfuse is about to write it.
    pub live_path: u64,
    /// Not left out: rows written although the target has an older version, which stays until ClickHouse
    /// merges the two.
    pub beside_older: u64,
}

impl AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.superseded += other.superseded;
        self.live += other.live;
        self.already_there += other.already_there;
        self.written_before += other.written_before;
        self.live_root += other.live_root;
        self.root_observation += other.root_observation;
        self.live_path += other.live_path;
        self.beside_older += other.beside_older;
    }
}

/// Rows that a segment has deferred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeferredCounts {
    /// Observations.
    pub rows: u64,
    /// Size of the file, in bytes.
    pub bytes: u64,
}

/// What the search for experiments found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExperimentCounts {
    /// Traces with an item.
    pub traces: u64,
    /// Items that point into these traces.
    pub items: u64,
    /// Spans that belong to an item, in any partition, including root spans of traces.
    pub spans: u64,
    /// Items that Langfuse's own spans carry already, so that no other span gets them.
    pub items_left_to_live_spans: u64,
}

impl AddAssign for ExperimentCounts {
    fn add_assign(&mut self, other: Self) {
        self.traces += other.traces;
        self.items += other.items;
        self.spans += other.spans;
        self.items_left_to_live_spans += other.items_left_to_live_spans;
    }
}

/// The state of the target when the run began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetState {
    /// Rows in the month.
    pub rows: u64,
    /// Whether it has any rows that something other than a backfill wrote.
    pub has_live_rows: bool,
    /// Rows changed after this time, in microseconds since 1970, are left to Langfuse.
    pub until: Option<i64>,
    /// What to do with rows that a backfill wrote earlier.
    pub own_rows: OwnRows,
    /// The last block of each table that a view fills, if all rows are written again and the table keeps
    /// block numbers.
    pub view_blocks: BTreeMap<String, u64>,
    /// Whether the keys of existing rows are in the store.
    pub keys_loaded: bool,
}

/// What to do with rows in the target that a backfill wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnRows {
    /// Do not write them again.
    #[default]
    Keep,
    /// Do not write again those in blocks after this one, which this run wrote.
    KeepAfterBlock(u64),
    /// Write them all again, since nothing distinguishes old ones from this run's.
    Rewrite,
}
