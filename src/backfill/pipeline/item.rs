//! One item of work, attempted until it is done or there is no use in trying again.

use std::sync::Arc;

use super::attempt::{Attempt, Reached};
use super::work::{Done, Pipeline, WorkItem};
use crate::backfill::error::WorkError;
use crate::error::{Error, Kind};
use crate::progress::Phase;

/// How often in a row parts or inserts may be made smaller without counting as a try: from the largest
/// to a few kilobytes. Other segments may make the limit larger meanwhile, so it must have an end.
const MOST_DIVISIONS: u32 = 16;

/// One item on its way.
pub(super) struct ItemWork {
    /// What all items share.
    pub pipeline: Arc<Pipeline>,
    /// Where its progress is shown.
    pub phase: Arc<Phase>,
    /// The item.
    pub item: WorkItem,
}

impl ItemWork {
    /// Works on the item until it is done.
    ///
    /// # Errors
    /// [`Kind::Failed`] with the item and the server's words, or [`Kind::Interrupted`].
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
                let attempt = Attempt::begin(pipeline, phase, &self.item, number, block_rows)?;
                attempt.run(&mut reached).await
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
                // What is met now is something else. It must be further than any attempt before:
                // where a backfill's rows are written again, each begins with the same ones.
                attempts = self.pipeline.destination.retries.attempts();
            }
            if let Some(fewer) = error.smaller_blocks(block_rows) {
                // Rows are larger than expected here, and usual elsewhere.
                block_rows = fewer;
            } else {
                let what = format!("{name}: {error}");
                if !attempts.again(error.hope(), &error.kind(), what).await {
                    let failed = format!("{name} could not be done{}", attempts.in_words());
                    return Err(Error::caused(failed, &error).with(error.advice()));
                }
            }
            if reached.has_sent {
                was_repeated = true;
                self.find_written(reached.in_doubt.as_deref()).await?;
            }
        }
        Err(Error::failed(format!("{name} was never begun")))
    }

    /// Finds out what an attempt has written. Inserts with such query ids may still be under way.
    async fn find_written(&self, in_doubt: Option<&str>) -> Result<(), Error> {
        let recovery = &self.pipeline.recovery;
        let segment = self.item.segment();
        let found = recovery.after_attempt(segment, in_doubt).await;
        found.map_err(|error| match error.kind() {
            Kind::Failed => error.during(format_args!("{} could not be done", self.item.name())),
            _ => error,
        })
    }
}
