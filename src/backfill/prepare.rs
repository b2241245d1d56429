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
    match context.options.engine {
        Engine::Embedded => load_traces(context, journal, store).await?,
        Engine::ClickHouse => trace_days::find(context, journal, store).await?,
    }
    target::look(context, journal).await?;
    find_experiments(context, journal, store).await?;
    known_rows::read_target(context, journal, store).await?;
    let checkpoint = journal.checkpoint();
    let keys = match context.options.engine {
        Engine::Embedded => {
            known_rows::scan_versions(context, checkpoint, store).await?;
            None
        }
        Engine::ClickHouse => segment_keys::read(context, checkpoint, store).await?,
    };
    let changes = trace_changes(context, journal, store);
    if context.resumed {
        changes.reload().await?;
    }
    Ok(Prepared { changes, keys })
}
