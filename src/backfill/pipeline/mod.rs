//! Segments, several at once: read → enrich → insert, bounded.
//!
//! Each segment holds a block that is arriving, blocks that wait for their traces and
//! blocks that wait to be sent, and all of them together at most its
//! share of the memory: a block of unusual size waits until the others are sent. A
//! segment is done when its insert is acknowledged; if anything
//! of it fails in a way that may pass, it is read again, and what the target has of it by then
//! is not sent again.

mod attempt;
pub(crate) mod compress;
mod item;
pub(crate) mod keep_alive;
pub(crate) mod limits;
pub(crate) mod send;

use std::sync::Arc;

use tokio::task::JoinSet;

use self::item::ItemWork;
use self::send::Destination;
use super::guard::Guard;
use super::guard::recovery::Recovery;
use super::remote_lookup::deferred_rows::DeferredRows;
use super::wanted_rows::WantedRows;
use crate::enrich::{Enricher, Unknown};
use crate::error::Error;
use crate::inspect::segments::Segment;
use crate::inspect::statements::SegmentQuery;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::progress::Phase;
use crate::state::counts::{DeferredCounts, SegmentCounts};

/// What all segments share.
pub(crate) struct Pipeline {
    /// Leaves out rows that are not to be written.
    pub guard: Guard,
    /// Finds out what an attempt has written that failed.
    pub recovery: Recovery,
    /// Makes events of observations.
    pub enricher: Enricher,
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
    /// Segments at once.
    pub concurrency: usize,
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

    fn number(&self) -> u32 {
        self.segment().number
    }

    fn rows(&self) -> u64 {
        match self {
            WorkItem::Segment(segment) => segment.rows,
            WorkItem::Deferred { counts, .. } => counts.rows,
        }
    }

    fn name(&self) -> String {
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
}

/// Writes down what is begun and what is done, one at a time.
pub(crate) trait Records {
    /// Before anything of an item is sent.
    ///
    /// # Errors
    /// [`Error`] where it cannot be written down; then the item is not begun.
    fn begin(&mut self, item: &WorkItem) -> Result<(), Error>;

    /// When all of an item is acknowledged. Says whether to begin another one.
    ///
    /// # Errors
    /// [`Error`] where it cannot be written down; then the item counts as begun.
    fn done(&mut self, done: Done) -> Result<bool, Error>;
}

/// Works through all items; the largest first, so that none holds the rest up.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) with the item and the server's words;
/// [`Kind::Interrupted`](crate::error::Kind) where the run was asked to end. Pieces that were
/// done before stay done.
pub(crate) async fn run(
    pipeline: Arc<Pipeline>,
    mut items: Vec<WorkItem>,
    phase: Arc<Phase>,
    records: &mut impl Records,
) -> Result<(), Error> {
    items.sort_by_key(WorkItem::rows);
    let mut running = JoinSet::new();
    let mut first_error = None;
    let mut is_enough = false;
    let shutdown = &pipeline.destination.shutdown;
    loop {
        let goes_on = first_error.is_none() && !is_enough && shutdown.signal().is_none();
        while goes_on
            && first_error.is_none()
            && running.len() < pipeline.concurrency
            && let Some(item) = items.pop()
        {
            if let Err(error) = records.begin(&item) {
                running.abort_all();
                first_error = Some(error);
                break;
            }
            let work = ItemWork {
                pipeline: Arc::clone(&pipeline),
                phase: Arc::clone(&phase),
                item,
            };
            running.spawn(work.run());
        }
        let outcome = match running.join_next().await {
            None => break,
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Error::caused("a segment ended unexpectedly", error)),
        };
        match outcome.and_then(|done| records.done(done)) {
            Ok(another) => is_enough |= !another,
            Err(error) => {
                // The others are not waited for: they may take long, or fail alike.
                running.abort_all();
                first_error.get_or_insert(error);
            }
        }
    }
    match (first_error, shutdown.signal()) {
        // What went wrong is what the operator must know, also where a signal came then.
        (Some(error), _) => Err(error),
        (None, Some(signal)) => Err(Error::interrupted(signal)),
        (None, None) => Ok(()),
    }
}
