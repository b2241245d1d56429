//! Everything before the first row is written: traces, what the target has, versions.

use std::sync::Arc;

use super::context::Context;
use super::experiments::find_experiments;
use super::journal::Journal;
use super::load::trace_changes::TraceChanges;
use super::load::{load_traces, trace_changes};
use super::pushdown::KeyFile;
use super::{known_rows, segment_keys, target, trace_days};
use crate::cli::options::Engine;
use crate::error::Error;
use crate::trace_store::TraceStore;

/// What is known before rows are read.
pub(super) struct Prepared {
    /// Traces that change from now on.
    pub changes: TraceChanges,
    /// The keys of observations, for the engine of the server.
    pub keys: Option<Arc<KeyFile>>,
}

/// Collects everything needed before reading rows.
///
/// # Errors
/// [`Error`] if the server, the store or a file fails, or on a signal.
pub(super) async fn prepare(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
) -> Result<Prepared, Error> {
    if context.options.engine == Engine::Embedded {
        load_traces(context, journal, store).await?;
    }
    target::look(context, journal).await?;
    find_experiments(context, journal, store).await?;
    known_rows::read_target(context, journal, store).await?;
    let keys = compare_versions(context, journal, store).await?;
    let changes = trace_changes(context, journal, store);
    if context.resumed {
        changes.reload().await?;
    }
    Ok(Prepared { changes, keys })
}

/// Compares versions of observations, and for the engine of the server those of traces; returns the keys of
/// segments that it kept for the latter.
async fn compare_versions(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
) -> Result<Option<Arc<KeyFile>>, Error> {
    let filter_bytes = context.options.budget.seen_bytes;
    let checkpoint = journal.checkpoint();
    if context.options.engine == Engine::Embedded {
        known_rows::scan_versions(context, checkpoint, store, filter_bytes).await?;
        return Ok(None);
    }
    let of_each = filter_bytes / 2;
    let (keys, ()) = tokio::try_join!(
        segment_keys::read(context, checkpoint, store, of_each),
        trace_days::find(context, store, of_each),
    )?;
    // No traces are loaded, so none are outdated.
    journal.commit_with(store, |checkpoint| checkpoint.superseded = Some(0))?;
    Ok(keys)
}
