//! What is worked on, and what with.

use std::sync::Arc;

use super::send::Destination;
use crate::backfill::block_stream::catch_up;
use crate::backfill::error::WorkError;
use crate::backfill::guard::Guard;
use crate::backfill::guard::recovery::Recovery;
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
    /// Leaves out rows that are not to be written.
    pub guard: Guard,
    /// Finds out what an attempt has written that failed.
    pub recovery: Recovery,
    /// Makes events of observations.
    pub enricher: Enricher,
    /// The table of the source.
    pub source: TableInfo,
    /// The query of one segment.
    pub query: SegmentQuery,
    /// Which rows of a segment are read, if not all.
    pub wanted: Option<WantedRows>,
    /// Where the events go.
    pub destination: Arc<Destination>,
    /// How much memory everything may take.
    pub budget: Budget,
    /// Buffers of blocks that arrive.
    pub pool: BufferPool,
    /// Where observations wait whose trace is not known.
    pub deferred: DeferredRows,
    /// Whether they do, when they come from the server.
    pub unknown: Unknown,
    /// Most rows in one block that is read.
    pub block_rows: usize,
}

impl Pipeline {
    /// Waits until the replica from which an item is read has all of its rows.
    ///
    /// # Errors
    /// [`WorkError`] where it does not get there.
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
    /// The observations of a segment.
    Segment(Segment),
    /// What a segment has left for later.
    Deferred {
        /// The segment.
        segment: Segment,
        /// How much that is.
        counts: DeferredCounts,
    },
}

impl WorkItem {
    /// The segment that it is, or is a part of.
    pub(crate) fn segment(&self) -> &Segment {
        match self {
            WorkItem::Segment(segment) | WorkItem::Deferred { segment, .. } => segment,
        }
    }

    /// Number of its segment.
    pub(super) fn number(&self) -> u32 {
        self.segment().number
    }

    /// The day on which it begins, where that is known.
    pub(super) fn first_day(&self) -> Option<Day> {
        self.segment().from.as_ref().map(|from| from.day)
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> u64 {
        match self {
            WorkItem::Segment(segment) => segment.rows,
            WorkItem::Deferred { counts, .. } => counts.rows,
        }
    }

    /// What it is, for people.
    pub(super) fn name(&self) -> String {
        let number = self.number();
        match self {
            WorkItem::Segment(_) => format!("segment {number}"),
            WorkItem::Deferred { .. } => format!("what segment {number} left for later"),
        }
    }
}

/// An item of work that is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// Number of its segment.
    pub number: u32,
    /// What became events.
    pub counts: SegmentCounts,
    /// What is left for later.
    pub deferred: DeferredCounts,
    /// Whether an attempt failed that had sent something.
    pub was_repeated: bool,
    /// Whether it is a segment, and not what one left for later.
    pub is_segment: bool,
}
