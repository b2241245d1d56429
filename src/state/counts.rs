//! What the checkpoint says of the parts of a run. Whoever changes one of these increases the version of
//! the checkpoint's format.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// What one segment came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCounts {
    /// Observations enriched, or traces that have a root span.
    pub observations: u64,
    /// Rows acknowledged, those of attempts that did not end well included.
    pub inserted: u64,
    /// Observations whose trace was not found.
    pub without_trace: u64,
    /// Spans that belong to an experiment.
    pub in_experiments: u64,
    /// Versions of traces that do not count, and have no root span.
    pub superseded: u64,
    /// Rows that are not written.
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

/// Rows that are not written, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Another version of the observation counts, or it is deleted.
    pub superseded: u64,
    /// A live row of the target is as new.
    pub live: u64,
    /// A backfill's row is as new, and was there before the run.
    pub already_there: u64,
    /// This run has written the row, in an attempt that did not end well.
    pub written_before: u64,
    /// The trace has a live root.
    pub live_root: u64,
    /// An observation is called as the trace's root span.
    pub root_observation: u64,
    /// It changed so late that Langfuse is about to write it.
    pub live_path: u64,
    /// None of those: rows that are written beside an older version, which stands there until
    /// ClickHouse merges the two.
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

/// What a segment has left for later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeferredCounts {
    /// Observations.
    pub rows: u64,
    /// Size of the file, in bytes.
    pub bytes: u64,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExperimentCounts {
    /// Traces that have an item.
    pub traces: u64,
    /// Items, all those that point into these traces.
    pub items: u64,
    /// Spans that belong to one, in whatever partition; the root spans of traces count.
    pub spans: u64,
    /// Items that live spans carry, so that no other span does.
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

/// What the target was like when the run began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetState {
    /// Rows in the month.
    pub rows: u64,
    /// Whether it has rows at all that something else than a backfill wrote.
    pub has_live_rows: bool,
    /// Rows that changed later, in microseconds since 1970, are left to Langfuse.
    pub until: Option<i64>,
    /// What becomes of a backfill's rows that are there.
    pub own_rows: OwnRows,
    /// The last block of each table that a view fills, where all are written again and the table
    /// keeps the numbers of blocks.
    pub view_blocks: BTreeMap<String, u64>,
    /// Whether the keys of the rows that were there are in the store.
    pub keys_loaded: bool,
}

/// What becomes of the rows in the target that a backfill wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnRows {
    /// They are not written again.
    #[default]
    Keep,
    /// Those that this run has written are not written again: the ones in later blocks.
    KeepAfterBlock(u64),
    /// They are written again, since nothing tells old ones from new ones.
    Rewrite,
}
