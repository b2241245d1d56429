//! Between the phases: which spans belong to an item of a dataset run.

pub(crate) mod find;
pub(crate) mod items;
mod live_items;
mod pointers;
pub(crate) mod traces;
mod tree;

use indicatif::HumanCount;

use self::find::ExperimentSource;
use self::traces::Trace;
use super::job::{Job, store_failed, work_failed};
use super::load::versions;
use crate::backfill::attempts::Attempts;
use crate::error::Error;
use crate::mapping::Source;
use crate::state::counts::ExperimentCounts;
use crate::trace_store::TraceStore;

impl Job {
    pub(super) async fn find_experiments(&mut self, store: &TraceStore) -> Result<(), Error> {
        if !self.options.experiments || self.checkpoint.experiments.is_some() {
            return Ok(());
        }
        // What an earlier process began.
        store.clear_experiments().map_err(store_failed)?;
        let mut counts = ExperimentCounts::default();
        let mut last = None;
        loop {
            let traces = self.experiment_source()?.traces(last.as_ref()).await;
            let traces = traces.map_err(|error| self.interrupted_or(work_failed(error)))?;
            if traces.is_empty() {
                break;
            }
            counts += self.keep_experiments(&traces, store).await?;
            last = traces.last().cloned();
            // Nobody knows beforehand how many there are.
            self.display.note(format_args!(
                "dataset runs: {} items, {} traces, {} spans",
                HumanCount(counts.items),
                HumanCount(counts.traces),
                HumanCount(counts.spans)
            ));
        }
        if counts.items_left_to_live_spans > 0 {
            self.display.note(format_args!(
                "{} items are left to Langfuse's own spans, which carry them already",
                HumanCount(counts.items_left_to_live_spans)
            ));
        }
        self.checkpoint.experiments = Some(counts);
        self.save_with(store)
    }

    fn experiment_source(&self) -> Result<ExperimentSource<'_>, Error> {
        let inspected = &self.inspected;
        let items = inspected.dataset_items.as_ref().ok_or_else(|| {
            Error::Failed("the table of dataset run items was not looked at".to_owned())
        })?;
        let sources = self.options.sources().into_iter();
        let budget = self.options.budget;
        Ok(ExperimentSource {
            connection: &self.connection,
            items,
            sources: sources
                .map(|source| match source {
                    Source::Observations => (source, &inspected.observations),
                    Source::Traces => (source, &inspected.traces),
                })
                .collect(),
            observations: &inspected.observations,
            live_target: self.has_live_rows().then_some(&inspected.target),
            partition_id: &inspected.observation_rows.partition_id,
            max_block_bytes: budget.load_block_bytes,
            preferred_block_bytes: budget.preferred_block_bytes,
            pool: self.pool.clone(),
            shutdown: &self.shutdown,
        })
    }

    /// Finds what belongs to the items of some traces, again and again while what stops it may
    /// pass.
    async fn keep_experiments(
        &self,
        traces: &[Trace],
        store: &TraceStore,
    ) -> Result<ExperimentCounts, Error> {
        let doing = "finding the spans of dataset run items";
        let failed = "the spans of dataset run items could not be found";
        let mut attempts =
            Attempts::new(&self.retries, doing, failed).in_blocks_of(versions::BLOCK_ROWS);
        let source = self.experiment_source()?;
        loop {
            match source.keep(traces, attempts.block_rows(), store).await {
                Ok(counts) => return Ok(counts),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    fn interrupted_or(&self, error: Error) -> Error {
        match self.shutdown.signal() {
            Some(signal) => Error::interrupted(signal),
            None => error,
        }
    }
}
