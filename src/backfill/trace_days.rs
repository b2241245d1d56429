//! Finds the day of each trace, for the engine of the server. Traces with versions on several days have
//! none: which version counts takes a look at all of them, so their rows go through the embedded
//! pipeline.

use super::context::Context;
use super::guard::version_scan::VersionScan;
use super::journal::Journal;
use super::work_attempts::WorkAttempts;
use crate::error::Error;
use crate::mapping::Source;
use crate::progress::Phase;
use crate::trace_store::TraceStore;

/// Replaces the stored days of traces with those there are now.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn find(
    context: &Context,
    journal: &mut Journal,
    store: &TraceStore,
) -> Result<(), Error> {
    let inspected = &context.inspected;
    let expected = inspected.traces_to_load;
    let phase = Phase::begin(&context.display, "traces checked", expected, 0);
    let doing = "looking for the days of traces";
    let failed = "cannot find the days of traces";
    // Traces beside the segments' days are joined, whatever the margin.
    let margin = context.options.subject.trace_margin_days.max(1);
    let days = context.options.share().days_with_margin(margin);
    let own = format!(
        "toDate({}.{}) BETWEEN toDate({}) AND toDate({})",
        Source::Traces.alias(),
        Source::Traces.time_column(),
        days.start(),
        days.end()
    );
    let on_rows = |rows| phase.advance(rows);
    let scan = VersionScan {
        connection: &context.connection,
        source: Source::Traces,
        table: &inspected.traces,
        own,
        rows: expected,
        has_others: inspected.has_more_traces,
        filter_bytes: context.options.budget.seen_bytes,
        max_block_bytes: context.options.budget.load_block_bytes,
        pool: context.pool.clone(),
        directory: context.state.path(),
        shutdown: &context.shutdown,
        on_rows: &on_rows,
    };
    let mut attempts = WorkAttempts::new(&context.retries, doing, failed);
    while let Err(error) = scan.run(store).await {
        attempts.failed(error).await?;
    }
    phase.finish();
    // No traces are loaded, so none are outdated.
    journal.commit_with(store, |checkpoint| checkpoint.superseded = Some(0))
}
