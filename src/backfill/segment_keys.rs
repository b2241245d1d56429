//! Reads the keys of all segments once, for the engine of the server: for versions, and for the statements.

use std::sync::Arc;

use super::context::Context;
use super::error::WorkError;
use super::guard::seen_row::RowReader;
use super::known_rows;
use super::pushdown::{KeyFile, KeyScan};
use crate::error::Error;
use crate::mapping::Source;
use crate::progress::Phase;
use crate::state::checkpoint::Checkpoint;
use crate::state::directory::free_bytes;
use crate::trace_store::TraceStore;

/// Finds the latest version of each observation, and keeps the keys of segments that remain to be written.
///
/// # Errors
/// [`Error`] if the server, the store or a file fails, or on a signal.
pub(super) async fn read(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &Arc<TraceStore>,
) -> Result<Option<Arc<KeyFile>>, Error> {
    // The keys of rows that are excluded would have to be told apart.
    if context.inspected.excludes_dataset_items {
        known_rows::scan_versions(context, checkpoint, store).await?;
        return Ok(None);
    }
    if !known_rows::wants_versions(context, checkpoint) {
        return Ok(None);
    }
    let compared = context.inspected.observation_partition.rows;
    let phase = Phase::begin(&context.display, "versions checked", compared, 0);
    let phase = Arc::new(phase);
    let on_rows = |rows| phase.advance(rows);
    let versions = known_rows::version_scan(context, &on_rows);
    let recovery = known_rows::recovery(context, checkpoint, store);
    let mut attempts = recovery.attempts("reading observation versions");
    let (own, file) = loop {
        let begun = async { Ok((versions.begin(store)?, new_file(context).await?)) };
        match begun.await {
            Ok(begun) => break begun,
            Err(error) => attempts.failed(error).await?,
        }
    };
    let scan = Arc::new(key_scan(context, checkpoint, store, &phase)?);
    let mut own = scan.run(own, &file, context.options.concurrency).await?;
    while let Err(error) = versions.read_others(&mut own).await {
        attempts.failed(error).await?;
    }
    if let Err(error) = versions.settle(own, store) {
        let failed = Error::caused("the versions of observations cannot be compared", &error);
        return Err(attempts.failed(error).await.err().unwrap_or(failed));
    }
    phase.finish();
    Ok(Some(file))
}

/// A file for the keys of the partition as it is now.
async fn new_file(context: &Context) -> Result<Arc<KeyFile>, WorkError> {
    let partition = context.inspected.partition(Source::Observations);
    let state = context
        .connection
        .partition_state(partition.table, partition.id);
    // The store may need so much, and others may be about to take some of the rest; what is not kept is read
    // again.
    let needed = context.inspected.store_bytes();
    let directory = context.state.path();
    let room = free_bytes(directory).map_or(0, |free| free.saturating_sub(needed));
    Ok(Arc::new(KeyFile::new(directory, state.await?, room / 2)?))
}

fn key_scan(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &Arc<TraceStore>,
    phase: &Arc<Phase>,
) -> Result<KeyScan, Error> {
    let source = Source::Observations;
    let mapping = context.inspected.mapping_of(source).of_versions();
    let (segments, remaining) = (checkpoint.segments_of(source), checkpoint.remaining(source));
    Ok(KeyScan {
        segments: segments.cloned().collect(),
        kept: remaining.iter().map(|segment| segment.number).collect(),
        query: context.inspected.versions_query_of(source, &mapping),
        reader: RowReader::new(&mapping).map_err(Error::configuration)?,
        connection: context.connection.clone(),
        table: context.inspected.observations.clone(),
        store: Arc::clone(store),
        budget: context.options.budget,
        pool: context.pool.clone(),
        shutdown: context.shutdown.clone(),
        throttle: context.throttle.clone(),
        directory: context.state.path().to_owned(),
        retries: context.retries.clone(),
        phase: Arc::clone(phase),
    })
}
