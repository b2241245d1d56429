//! Runs segments concurrently: read → enrich → insert, in bounded memory.
//!
//! Each segment holds an arriving block, blocks waiting for traces and blocks waiting to be sent,
//! all within its share of memory: an unusually large block waits until the others are sent. A
//! segment is done when its insert is acknowledged. After a temporary failure it is read again, and
//! rows that have reached the target are not sent again.

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

/// Records the start and end of items, one at a time.
pub(crate) trait Records {
    /// Records that an item is about to be sent.
    ///
    /// # Errors
    /// [`Error`] if it cannot be recorded; the item is then not started.
    fn begin(&mut self, item: &WorkItem) -> Result<(), Error>;

    /// Records that an item is fully acknowledged. Returns whether to start another one.
    ///
    /// # Errors
    /// [`Error`] if it cannot be recorded; the item then counts as started only.
    fn done(&mut self, done: Done) -> Result<bool, Error>;
}

/// Works through all items day by day, so that the trace store's pages read for one are still
/// cached for the next. Within a day it takes the largest first, so that none finishes late.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) with the item and the server's message, or
/// [`Kind::Interrupted`](crate::error::Kind) on a signal. Finished items stay finished.
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
        // Items remain but none is running, so starting is not allowed right now.
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
                // Do not wait for the others: they may take long or fail alike.
                running.abort_all();
                first_error.get_or_insert(error);
            }
        }
    }
    match (first_error, shutdown.signal()) {
        // Report the failure, even if a signal came at the same time.
        (Some(error), _) => Err(error),
        (None, Some(signal)) => Err(Error::interrupted(signal)),
        (None, None) => Ok(()),
    }
}
