//! Items of work, and what all of them share.

use std::sync::Arc;

use super::send::Destination;
use crate::backfill::block_stream::catch_up;
use crate::backfill::error::WorkError;
use crate::backfill::guard::Guard;
use crate::backfill::guard::recovery::Recovery;
use crate::backfill::pushdown::Pushdown;
use crate::backfill::remote_lookup::deferred_rows::DeferredRows;
use crate::backfill::wanted_rows::WantedRows;
use crate::clickhouse::TableInfo;
use crate::enrich::{Enricher, Unknown};
use crate::inspect::segments::Segment;
use crate::inspect::statements::SegmentQuery;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::partition::Day;
use crate::state::counts::{DeferredCounts, SegmentCounts};

/// What all segments share.
pub(crate) struct Pipeline {
    /// Excludes rows that must not be written.
    pub guard: Guard,
    /// Finds out what a failed attempt wrote.
    pub recovery: Recovery,
    /// Turns rows into events.
    pub enricher: Enricher,
    /// The source table.
    pub source: TableInfo,
    /// The query of a segment.
    pub query: SegmentQuery,
    /// The rows to read in each segment, if not all.
    pub wanted: Option<WantedRows>,
    /// Where events go.
    pub destination: Arc<Destination>,
    /// Memory limits.
    pub budget: Budget,
    /// Buffers for arriving blocks.
    pub pool: BufferPool,
    /// Stores rows whose trace is unknown.
    pub deferred: DeferredRows,
    /// How to treat such rows when they come from the server.
    pub unknown: Unknown,
    /// Maximum rows per block to read.
    pub block_rows: usize,
    /// Makes the events in the server, as far as it can.
    pub pushdown: Option<Pushdown>,
}

impl Pipeline {
    /// Waits until the replica that serves an item has all of its rows.
    ///
    /// # Errors
    /// [`WorkError`] if it does not catch up, or on a signal.
    pub(super) async fn catch_up(&self, item: &WorkItem) -> Result<(), WorkError> {
        let WorkItem::Segment(segment) = item else {
            return Ok(());
        };
        let connection = self.destination.connection_of(segment.number);
        catch_up(&connection, &self.source, &self.destination.shutdown).await
    }
}

/// An item of work.
#[derive(Debug, Clone)]
pub(crate) enum WorkItem {
    /// The rows of a segment.
    Segment(Segment),
    /// Rows that a segment deferred.
    Deferred {
        /// The segment.
        segment: Segment,
        /// Their counts.
        counts: DeferredCounts,
    },
}

impl WorkItem {
    /// The segment it is, or belongs to.
    pub(crate) fn segment(&self) -> &Segment {
        match self {
            WorkItem::Segment(segment) | WorkItem::Deferred { segment, .. } => segment,
        }
    }

    /// Number of its segment.
    pub(super) fn number(&self) -> u32 {
        self.segment().number
    }

    /// The day it starts on, if known.
    pub(super) fn first_day(&self) -> Option<Day> {
        self.segment().from.as_ref().map(|from| from.day)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> u64 {
        match self {
            WorkItem::Segment(segment) => segment.rows,
            WorkItem::Deferred { counts, .. } => counts.rows,
        }
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        let number = self.number();
        match self {
            WorkItem::Segment(_) => format!("segment {number}"),
            WorkItem::Deferred { .. } => format!("segment {number} (deferred rows)"),
        }
    }
}

/// A finished item.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// Number of its segment.
    pub number: u32,
    /// What became events.
    pub counts: SegmentCounts,
    /// What was deferred.
    pub deferred: DeferredCounts,
    /// Whether an attempt failed after sending something.
    pub was_repeated: bool,
    /// Whether it is a segment rather than its deferred rows.
    pub is_segment: bool,
}
