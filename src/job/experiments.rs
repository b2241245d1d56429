//! Between the phases: which spans belong to an item of a dataset run.

use super::{Job, work_failed};
use crate::error::Error;
use crate::experiments::{ExperimentCounts, ExperimentSource, Trace};
use crate::load;
use crate::mapping::Source;
use crate::progress::Phase;
use crate::trace_store::TraceStore;

impl Job {
    pub(super) async fn find_experiments(&mut self, store: &TraceStore) -> Result<(), Error> {
        if !self.options.experiments || self.checkpoint.experiments.is_some() {
            return Ok(());
        }
        // What an earlier process began.
        store
            .clear_experiments()
            .map_err(|error| work_failed(error.into()))?;
        let phase = Phase::begin(&self.display, "traces of dataset runs", 0, 0);
        let mut counts = ExperimentCounts::default();
        let mut last = None;
        loop {
            let traces = self.experiment_source().traces(last.as_ref()).await;
            let traces = traces.map_err(|error| self.interrupted_or(work_failed(error)))?;
            if traces.is_empty() {
                break;
            }
            counts += self.keep_experiments(&traces, store).await?;
            phase.advance(traces.len() as u64);
            last = traces.last().cloned();
        }
        phase.finish();
        self.checkpoint.experiments = Some(counts);
        self.save()
    }

    fn experiment_source(&self) -> ExperimentSource<'_> {
        let inspected = &self.inspected;
        let sources = self.options.sources().into_iter();
        let budget = self.options.budget;
        ExperimentSource {
            connection: &self.connection,
            // Inspecting finds it, or refuses the run.
            items: inspected
                .dataset_items
                .as_ref()
                .unwrap_or(&inspected.observations),
            sources: sources
                .map(|source| match source {
                    Source::Observations => (source, &inspected.observations),
                    Source::Traces => (source, &inspected.traces),
                })
                .collect(),
            observations: &inspected.observations,
            partition_id: &inspected.observation_rows.partition_id,
            max_block_bytes: budget.load_block_bytes,
            preferred_block_bytes: budget.preferred_block_bytes,
            pool: self.pool.clone(),
            shutdown: &self.shutdown,
        }
    }

    /// Finds what belongs to the items of some traces, again and again while what stops it may
    /// pass.
    async fn keep_experiments(
        &self,
        traces: &[Trace],
        store: &TraceStore,
    ) -> Result<ExperimentCounts, Error> {
        let mut tries = self.retries.tries();
        let mut block_rows = load::BLOCK_ROWS;
        let source = self.experiment_source();
        loop {
            let error = match source.keep(traces, block_rows, store).await {
                Ok(counts) => return Ok(counts),
                Err(error) => error,
            };
            if let Some(signal) = self.shutdown.signal() {
                return Err(Error::interrupted(signal));
            }
            if let Some(fewer) = error.smaller_blocks(block_rows) {
                block_rows = fewer;
                continue;
            }
            let what = format!("finding the spans of dataset run items: {error}");
            if !tries.again(error.is_passing(), what).await {
                return Err(Error::Failed(format!(
                    "the spans of dataset run items could not be found{}: {error}{}",
                    tries.in_words(),
                    error.advice()
                )));
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
