//! Works on one item with retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::attempt::{Attempt, Reached};
use super::work::{Done, Pipeline, WorkItem};
use crate::backfill::error::WorkError;
use crate::backfill::pushdown::{Progress, Pushdown};
use crate::error::{Error, Kind};
use crate::inspect::segments::Segment;
use crate::progress::Phase;
use crate::state::counts::{DeferredCounts, LeftOut, SegmentCounts};

/// Maximum consecutive reductions of part or insert size that do not count as tries: from the
/// largest size to a few kilobytes. Other segments may raise the limit again, so there must be an
/// end.
const MOST_DIVISIONS: u32 = 16;

/// An item in progress.
pub(super) struct ItemWork {
    /// Shared by all items.
    pub pipeline: Arc<Pipeline>,
    /// Shows its progress.
    pub phase: Arc<Phase>,
    /// The item.
    pub item: WorkItem,
}

impl ItemWork {
    /// Works on the item until it is done.
    ///
    /// # Errors
    /// [`Kind::Failed`] with the item and the server's message, or [`Kind::Interrupted`] on a
    /// signal.
    pub(super) async fn run(self) -> Result<Done, Error> {
        let name = self.item.name();
        let mut attempts = self.pipeline.destination.retries.attempts();
        let mut block_rows = self.pipeline.block_rows;
        let mut was_repeated = false;
        let mut divisions = 0;
        let mut furthest = 0;
        for number in 0.. {
            let mut reached = Reached::default();
            let (pipeline, phase) = (&*self.pipeline, &*self.phase);
            let outcome = async {
                pipeline.catch_up(&self.item).await?;
                match (&pipeline.pushdown, &self.item) {
                    (Some(pushdown), WorkItem::Segment(segment)) => {
                        self.push_down(pushdown, segment, number, block_rows, &mut reached)
                            .await
                    }
                    _ => {
                        let item = &self.item;
                        let attempt =
                            Attempt::begin(pipeline, phase, item, number, block_rows, None)?;
                        attempt.run(&mut reached).await
                    }
                }
            };
            let outcome = outcome.await;
            let error = match outcome {
                Ok(done) => {
                    self.phase
                        .finish_piece(reached.shown_rows, self.item.rows());
                    return Ok(Done {
                        was_repeated,
                        ..done
                    });
                }
                Err(error) => error,
            };
            self.phase.go_back(reached.shown_rows);
            if error == WorkError::Interrupted {
                let signal = self.pipeline.destination.shutdown.signal();
                return Err(Error::interrupted(signal.unwrap_or_default()));
            }
            let is_smaller_next = matches!(
                &error,
                WorkError::InsertFailed { error, is_single_block: false, .. } if error.is_too_large()
            );
            let got_further = reached.written > furthest;
            furthest = furthest.max(reached.written);
            divisions = match got_further {
                false => divisions + u32::from(is_smaller_next),
                true => 0,
            };
            let sends_less = is_smaller_next && divisions <= MOST_DIVISIONS;
            if got_further || sends_less {
                // Progress means a new problem, so retries start over. It must be beyond any
                // earlier attempt: when a backfill's rows are written again, every attempt starts
                // with the same ones.
                attempts = self.pipeline.destination.retries.attempts();
            }
            if let Some(fewer) = error.smaller_blocks(block_rows) {
                // Rows here are larger than expected; elsewhere they may not be.
                block_rows = fewer;
            } else {
                let what = format!("{name}: {error}");
                if !attempts.again(error.hope(), &error.kind(), what).await {
                    let failed = format!("{name} failed{}", attempts.in_words());
                    return Err(Error::caused(failed, &error).with(error.advice()));
                }
            }
            if reached.has_sent {
                was_repeated = true;
                self.find_written(reached.in_doubt.as_deref()).await?;
            }
        }
        Err(Error::failed(format!("{name} was never started")))
    }

    /// Has the server write a segment, then writes the rest.
    async fn push_down(
        &self,
        pushdown: &Pushdown,
        segment: &Segment,
        number: u32,
        block_rows: usize,
        reached: &mut Reached,
    ) -> Result<Done, WorkError> {
        let (pipeline, phase) = (&*self.pipeline, &*self.phase);
        let name = format!("{}-{number}", segment.number);
        let shown = AtomicU64::new(0);
        let on_rows = |rows| {
            shown.fetch_add(rows, Ordering::Relaxed);
            phase.advance(rows);
        };
        let mut progress = Progress::default();
        let pushed = pushdown.write(segment, &name, &mut progress, &on_rows);
        let pushed = pushed.await;
        reached.shown_rows = shown.into_inner();
        reached.has_sent = progress.has_sent;
        reached.written = progress.written;
        if progress.is_in_doubt {
            let prefix = &pipeline.destination.query_prefix;
            reached.in_doubt = Some(format!("{prefix}-{name}-"));
        }
        let pushed = pushed?;
        let mut done = Done {
            number: segment.number,
            counts: pushed.counts,
            deferred: DeferredCounts::default(),
            was_repeated: false,
            is_segment: true,
        };
        let Some(rest) = &pushed.rest else {
            return Ok(done);
        };
        let item = &self.item;
        let attempt = Attempt::begin(pipeline, phase, item, number, block_rows, Some(rest))?;
        let mut of_rest = Reached::default();
        let outcome = attempt.run(&mut of_rest).await;
        reached.shown_rows += of_rest.shown_rows;
        reached.has_sent |= of_rest.has_sent;
        reached.written += of_rest.written;
        reached.in_doubt = of_rest.in_doubt;
        let read = of_rest.shown_rows;
        let done_rest = outcome?;
        if read < rest.rows {
            let (rows, written) = (rest.rows, read);
            return Err(WorkError::RowsDiffer { rows, written });
        }
        let rest = done_rest;
        // What it left out was counted before.
        let LeftOut { written_before, .. } = rest.counts.left_out;
        done.counts += SegmentCounts {
            observations: rest.counts.observations - written_before,
            inserted: rest.counts.inserted - written_before,
            left_out: LeftOut::default(),
            ..rest.counts
        };
        done.deferred = rest.deferred;
        Ok(done)
    }

    /// Finds out what an attempt wrote. Inserts with the query ids `in_doubt` may still be running.
    async fn find_written(&self, in_doubt: Option<&str>) -> Result<(), Error> {
        let recovery = &self.pipeline.recovery;
        let segment = self.item.segment();
        let found = recovery.after_attempt(segment, in_doubt).await;
        found.map_err(|error| match error.kind() {
            Kind::Failed => error.during(format_args!("{} failed", self.item.name())),
            _ => error,
        })
    }
}
