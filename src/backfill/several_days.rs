//! Finds traces with versions on several days. Which of them counts takes a look at all of them, so
//! their rows go through the embedded pipeline.

use tokio::task::block_in_place;

use super::block_stream::{BlockStream, catch_up};
use super::context::Context;
use super::error::WorkError;
use super::guard::row_hash::{OF_TRACES, for_each_key};
use super::journal::Journal;
use super::work_attempts::WorkAttempts;
use crate::clickhouse::Statement;
use crate::error::Error;
use crate::inspect::statements::TRACE;
use crate::progress::Phase;
use crate::trace_store::{Against, SortedWriter, TraceStore};

/// Keys per block.
const KEY_ROWS: usize = 65_536;

/// Replaces the stored traces of several days with those there are now.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn find(
    context: &Context,
    journal: &mut Journal,
    store: &TraceStore,
) -> Result<(), Error> {
    let expected = context.inspected.traces_to_load;
    let phase = Phase::begin(&context.display, "traces checked", expected, 0);
    let doing = "looking for traces with versions on several days";
    let failed = "cannot find the traces with versions on several days";
    let mut attempts = WorkAttempts::new(&context.retries, doing, failed);
    while let Err(error) = read(context, store).await {
        attempts.failed(error).await?;
    }
    phase.finish();
    // No traces are loaded, so none are outdated.
    journal.commit_with(store, |checkpoint| checkpoint.superseded = Some(0))
}

async fn read(context: &Context, store: &TraceStore) -> Result<(), WorkError> {
    block_in_place(|| store.clear(Against::SeveralDays))?;
    let [hash, check] = OF_TRACES.trace_key();
    // Traces beside the segments' days are joined, whatever the margin.
    let margin = context.options.subject.trace_margin_days.max(1);
    let days = context.options.share().days_with_margin(margin);
    let traces = &context.inspected.traces;
    // In the order of their keys, as the store takes them.
    let query = format!(
        "SELECT CAST({hash}, 'UInt64') AS c0, CAST({check}, 'UInt32') AS c1 FROM {} AS {TRACE} \
         GROUP BY c0, c1 HAVING min(toDate({TRACE}.timestamp)) != max(toDate({TRACE}.timestamp)) \
         AND countIf(toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({})) > 0 \
         ORDER BY c0, c1",
        traces.qualified_name(),
        days.start(),
        days.end(),
    );
    let statement = Statement::new(query, KEY_ROWS).of_a_table();
    let (connection, shutdown) = (&context.connection, &context.shutdown);
    let most = context.options.budget.load_block_bytes;
    catch_up(connection, traces, shutdown).await?;
    let mut blocks = BlockStream::open(connection, &statement, most, &context.pool, shutdown)?;
    let mut writer = SortedWriter::new(store, Against::SeveralDays, "traces");
    while let Some(block) = blocks.next().await? {
        block_in_place(|| for_each_key(&block, |key| Ok(writer.put(&key, b"")?)))?;
    }
    block_in_place(|| writer.finish())?;
    Ok(())
}
