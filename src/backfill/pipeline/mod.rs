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
mod work;

use std::cmp::Reverse;
use std::sync::Arc;

use tokio::task::JoinSet;

use self::item::ItemWork;
use crate::error::Error;
use crate::progress::Phase;

pub(crate) use self::work::{Done, Pipeline, WorkItem};

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

/// Works through all items, day by day, so that what is read of the trace store for one is in the page cache
/// for the next; of a day the largest first, so that none holds the rest up.
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
    items.sort_by_key(|item| (Reverse(item.first_day()), item.rows()));
    let mut running = JoinSet::new();
    let mut first_error = None;
    let mut is_enough = false;
    let shutdown = &pipeline.destination.shutdown;
    let throttle = &pipeline.destination.throttle;
    let mut changes = throttle.changes();
    loop {
        let goes_on = first_error.is_none() && !is_enough && shutdown.signal().is_none();
        while goes_on
            && first_error.is_none()
            && running.len() < throttle.segments_at_once()
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
        let is_over = items.is_empty() || first_error.is_some() || !goes_on;
        if running.is_empty() && is_over {
            break;
        }
        // What is not over, and has nothing under way, may begin nothing.
        let _still = running.is_empty().then(|| throttle.stand_still());
        let outcome = tokio::select! {
            Some(outcome) = running.join_next() => outcome,
            () = changes.next() => continue,
            _ = shutdown.requested(), if running.is_empty() => continue,
        };
        let outcome = outcome
            .unwrap_or_else(|error| Err(Error::caused("a segment ended unexpectedly", error)));
        let outcome = outcome.and_then(|done| {
            let another = records.done(done)?;
            pipeline.destination.count(done.counts, done.is_segment);
            Ok(another)
        });
        match outcome {
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
