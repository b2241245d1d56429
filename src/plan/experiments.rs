//! How long it takes to find the spans of dataset run items: measured on the first of their traces.

use tokio::time::Instant;

use super::sample::{Experiments, Measured, Sampler, attempts};
use crate::backfill::error::WorkError;
use crate::backfill::experiments::find::{ExperimentSource, TRACES_AT_ONCE};
use crate::backfill::load::versions;
use crate::error::Error;
use crate::trace_store::TraceStore;

impl Sampler<'_> {
    /// Finds the spans of as many traces as a run takes at once, if it looks for them at all.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) where the server or the temporary directory does not let it.
    pub(super) async fn experiments(
        &self,
        store: &TraceStore,
    ) -> Result<Option<Experiments>, Error> {
        if !self.options.subject.experiments {
            return Ok(None);
        }
        let source =
            ExperimentSource::new(self.inspected, self.options, self.connection, self.shutdown)?;
        let doing = "finding the spans of dataset run items";
        let mut attempts = attempts(self.retries, doing, versions::BLOCK_ROWS);
        loop {
            match measure(&source, attempts.block_rows(), store).await {
                Ok(experiments) => return Ok(Some(experiments)),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }
}

async fn measure(
    source: &ExperimentSource<'_>,
    block_rows: usize,
    store: &TraceStore,
) -> Result<Experiments, WorkError> {
    let started = Instant::now();
    let traces = source.traces(None).await?;
    if !traces.is_empty() {
        source.keep(&traces, block_rows, store).await?;
    }
    let found = Measured {
        rows: traces.len() as u64,
        seconds: started.elapsed().as_secs_f64(),
    };
    let traces = match traces.len() < TRACES_AT_ONCE {
        true => found.rows,
        false => source.count_traces().await?,
    };
    Ok(Experiments { traces, found })
}
