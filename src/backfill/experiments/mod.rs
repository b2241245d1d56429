//! Between the phases: finds the spans of dataset run items.

pub(crate) mod find;
pub(crate) mod items;
mod live_items;
mod pointers;
pub(crate) mod traces;
mod tree;

use indicatif::HumanCount;

use self::find::ExperimentSource;
use self::traces::Trace;
use super::context::Context;
use super::journal::Journal;
use super::load::versions;
use crate::backfill::work_attempts::WorkAttempts;
use crate::error::Error;
use crate::state::counts::ExperimentCounts;
use crate::trace_store::TraceStore;

/// Finds the spans of dataset run items, if wanted and not done yet.
///
/// # Errors
/// [`Error`] if the server or the trace store fails, or on a signal.
pub(super) async fn find_experiments(
    context: &Context,
    journal: &mut Journal,
    store: &TraceStore,
) -> Result<(), Error> {
    if !context.options.subject.experiments || journal.checkpoint().experiments.is_some() {
        return Ok(());
    }
    // Discard what an earlier process started.
    store.clear_experiments()?;
    let source = source(context, journal.checkpoint().has_live_rows())?;
    let mut counts = ExperimentCounts::default();
    let mut last = None;
    loop {
        let traces = source.traces(last.as_ref()).await;
        let traces = traces.map_err(|error| match context.shutdown.signal() {
            Some(signal) => Error::interrupted(signal),
            None => error.into(),
        })?;
        if traces.is_empty() {
            break;
        }
        counts += keep(context, &source, &traces, store).await?;
        last = traces.last().cloned();
        // The number of items is not known beforehand, so there is no progress bar.
        context.display.note(format_args!(
            "dataset runs: {} items, {} traces, {} spans",
            HumanCount(counts.items),
            HumanCount(counts.traces),
            HumanCount(counts.spans)
        ));
    }
    if counts.items_left_to_live_spans > 0 {
        context.display.note(format_args!(
            "{} items are left to Langfuse's own spans, which already carry them",
            HumanCount(counts.items_left_to_live_spans)
        ));
    }
    journal.commit_with(store, |checkpoint| checkpoint.experiments = Some(counts))
}

fn source(context: &Context, has_live_rows: bool) -> Result<ExperimentSource<'_>, Error> {
    let source = ExperimentSource::new(
        &context.inspected,
        &context.options,
        &context.connection,
        &context.shutdown,
    )?;
    Ok(ExperimentSource {
        live_target: has_live_rows.then_some(&context.inspected.target),
        pool: context.pool.clone(),
        ..source
    })
}

/// Finds the spans of some traces' items, with retries.
async fn keep(
    context: &Context,
    source: &ExperimentSource<'_>,
    traces: &[Trace],
    store: &TraceStore,
) -> Result<ExperimentCounts, Error> {
    let doing = "finding spans of dataset run items";
    let failed = "cannot find the spans of dataset run items";
    let mut attempts =
        WorkAttempts::new(&context.retries, doing, failed).in_blocks_of(versions::BLOCK_ROWS);
    loop {
        match source.keep(traces, attempts.block_rows(), store).await {
            Ok(counts) => return Ok(counts),
            Err(error) => attempts.failed(error).await?,
        }
    }
}
