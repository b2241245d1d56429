//! Estimates the time to find spans of dataset run items by measuring the first of their traces.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::sample::{Experiments, Sampler, attempts};
use crate::backfill::error::WorkError;
use crate::backfill::experiments::find::{ExperimentSource, TRACES_AT_ONCE};
use crate::backfill::load::versions;
use crate::error::Error;
use crate::trace_store::TraceStore;

/// Stop measuring after this. The result is then a lower bound.
pub(super) const LONGEST: Duration = Duration::from_secs(15);

impl Sampler<'_> {
    /// Measures one batch of traces, the size a run would use, if the run needs experiments.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the server or the temporary directory fails.
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
    let mut measured = Experiments::default();
    let finding = async {
        let traces = source.traces(None).await?;
        measured.found.rows = traces.len() as u64;
        measured.traces = measured.found.rows;
        if !traces.is_empty() {
            source.keep(&traces, block_rows, store).await?;
        }
        Ok(())
    };
    measured.is_cut_short = is_cut_short(started + LONGEST, finding).await?;
    measured.found.seconds = started.elapsed().as_secs_f64();
    if measured.found.rows >= TRACES_AT_ONCE as u64 {
        let counting = async {
            measured.traces = source.count_traces().await?;
            Ok(())
        };
        measured.is_cut_short |= is_cut_short(Instant::now() + LONGEST, counting).await?;
    }
    Ok(measured)
}

/// Works until `end`. Returns whether it was cut short.
async fn is_cut_short(
    end: Instant,
    work: impl Future<Output = Result<(), WorkError>>,
) -> Result<bool, WorkError> {
    match timeout_at(end, work).await {
        Ok(ended) => ended.map(|()| false),
        Err(_) => Ok(true),
    }
}
