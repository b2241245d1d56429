//! Traces that were not loaded: found one by one, wherever they are.

pub(crate) mod deferred_rows;
pub(crate) mod query;

use tokio::task::block_in_place;

use self::query::{Answer, Question};
use super::job::{Job, work_failed};
use super::load::versions;
use super::pipeline::Pipeline;
use crate::backfill::attempts::Attempts;
use crate::error::Error;
use crate::mapping::Source;
use crate::native::BlockReader;
use crate::trace_store::{About, TraceStore};

/// Traces that are nowhere, and are listed in the report.
const NOWHERE_LISTED: usize = 100;

impl Job {
    /// Asks for the traces of all rows that wait.
    pub(super) async fn look_elsewhere(
        &mut self,
        source: Source,
        pipeline: &Pipeline,
        store: &TraceStore,
    ) -> Result<(), Error> {
        let key_columns = self.inspected.mapping_of(source).key_columns;
        // A trace that waits itself may be known in an older version, which must not count.
        let about = match source {
            Source::Observations => About::Missing,
            Source::Traces => About::Moved,
        };
        let deferred = self.checkpoint.deferred.clone();
        let mut question = Question::default();
        for (segment, counts) in deferred {
            let file = pipeline.deferred.reader(segment, counts.bytes);
            let mut file = file.map_err(work_failed)?;
            let mut blocks = BlockReader::new(pipeline.budget.max_block_bytes, &self.pool);
            while let Some(chunk) = block_in_place(|| file.next_chunk()).map_err(work_failed)? {
                blocks.push(&chunk);
                while let Some(block) = blocks.next_block().map_err(|e| work_failed(e.into()))? {
                    let added = block_in_place(|| question.add(&block, key_columns, about, store));
                    added.map_err(work_failed)?;
                    if question.is_full() {
                        self.ask_waiting(&std::mem::take(&mut question), about, store)
                            .await?;
                    }
                }
            }
            blocks.finish().map_err(|error| work_failed(error.into()))?;
        }
        match question.is_empty() {
            true => Ok(()),
            false => self.ask_waiting(&question, about, store).await,
        }
    }

    async fn ask_waiting(
        &mut self,
        question: &Question,
        about: About,
        store: &TraceStore,
    ) -> Result<(), Error> {
        let answer = self.ask(question, about, store).await?;
        if about == About::Moved {
            return Ok(());
        }
        let elsewhere = &mut self.checkpoint.elsewhere;
        elsewhere.asked += question.len() as u64;
        elsewhere.found += answer.found;
        let room = NOWHERE_LISTED.saturating_sub(elsewhere.nowhere.len());
        let nowhere = answer.nowhere.into_iter().take(room);
        elsewhere
            .nowhere
            .extend(nowhere.map(|(project, id)| (project.into(), id.into())));
        self.save_with(store)
    }

    /// Finds the traces that are on a day that is loaded and on days that are not, and which of
    /// their versions counts.
    pub(super) async fn settle_far_moved(&self, store: &TraceStore) -> Result<(), Error> {
        // A root span is written by the month in which its trace's latest version lies, so that
        // one must be known.
        let is_wanted = self.options.remote_lookup || self.options.root_spans;
        if !is_wanted || !self.inspected.has_more_traces {
            return Ok(());
        }
        let margin = self.options.trace_margin_days;
        let days = self.options.partition.days_with_margin(margin);
        let source = self.trace_source();
        let mut last = None;
        loop {
            let moved = tokio::select! {
                moved = source.moved_far(&days, last.as_ref()) => moved.map_err(work_failed)?,
                signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
            };
            let Some(final_one) = moved.last().cloned() else {
                return Ok(());
            };
            last = Some(final_one);
            self.ask(&Question::of(moved), About::Moved, store).await?;
        }
    }

    /// Asks a question, again and again while what stops it may pass.
    async fn ask(
        &self,
        question: &Question,
        about: About,
        store: &TraceStore,
    ) -> Result<Answer, Error> {
        let count = question.len();
        let doing = format!("looking for {count} traces in other months");
        let failed = format!("{count} traces could not be looked for in other months");
        let mut attempts =
            Attempts::new(&self.retries, doing, failed).in_blocks_of(versions::BLOCK_ROWS);
        let source = self.trace_source();
        loop {
            let rows = attempts.block_rows();
            match source
                .ask(question, about, store, rows, &self.shutdown)
                .await
            {
                Ok(answer) => return Ok(answer),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }
}
