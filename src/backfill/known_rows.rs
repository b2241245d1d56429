//! Collects what the store must know before rows are written: existing target rows, latest
//! observation versions, and traces that have a root.

use std::sync::Arc;

use indicatif::HumanCount;

use super::context::Context;
use super::guard::recovery::Recovery;
use super::guard::roots::RootScan;
use super::guard::target::Extent;
use super::guard::version_scan::VersionScan;
use super::journal::Journal;
use super::target;
use crate::error::Error;
use crate::inspect::share::is_of_share;
use crate::mapping::Source;
use crate::partition::ShareOfMonth;
use crate::progress::Phase;
use crate::state::checkpoint::Checkpoint;
use crate::state::counts::OwnRows;
use crate::trace_store::{Against, TraceStore};

/// Rows whose keys are read within seconds.
const READ_ANYWAY: u64 = 10_000_000;

/// Finds out what an attempt left in the target.
pub(super) fn recovery(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &Arc<TraceStore>,
) -> Recovery {
    let target = checkpoint.target.as_ref();
    Recovery {
        target: Arc::new(context.target_month()),
        store: Arc::clone(store),
        own_rows: target.map_or(OwnRows::Keep, |target| target.own_rows),
        retries: context.retries.clone(),
    }
}

/// Reads which rows the target has: those from before the run, and those an earlier process of the
/// run may have written.
///
/// # Errors
/// [`Error`] if the target cannot be read, or on a signal.
pub(super) async fn read_target(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
) -> Result<(), Error> {
    let recovery = recovery(context, journal.checkpoint(), store);
    read_what_is_in_doubt(context, journal, &recovery).await?;
    let Some(target) = journal.checkpoint().target.clone() else {
        return Ok(());
    };
    let counts_none = target.own_rows != OwnRows::Keep && !target.has_live_rows;
    let name = "days of the target read";
    if !target.keys_loaded && target.rows > 0 && !counts_none {
        store.clear(Against::RowsBefore)?;
        read_rows(context, &recovery, Against::RowsBefore, target.rows, name).await?;
    } else if let Some(rows) = rows_to_read_again(context, journal.checkpoint(), &recovery).await? {
        // Not as rows of before: those of the run itself count as its own.
        read_rows(context, &recovery, Against::RowsSince, rows, name).await?;
    } else if context.resumed && target.has_live_rows {
        // An earlier process read the target, but Langfuse has been writing since.
        read_live_rows(context, recovery).await?;
    }
    journal.commit_with(store, |checkpoint| {
        if let Some(target) = &mut checkpoint.target {
            target.keys_loaded = true;
        }
    })
}

/// Number of rows in the target, if more than the checkpoint explains: a resumed run must not write again
/// what another run has written since. Segments with unknown progress may have written all of their rows;
/// up to [`READ_ANYWAY`] rows are read again all the same.
async fn rows_to_read_again(
    context: &Context,
    checkpoint: &Checkpoint,
    recovery: &Recovery,
) -> Result<Option<u64>, Error> {
    let Some(target) = checkpoint.target.as_ref().filter(|_| context.resumed) else {
        return Ok(None);
    };
    let inserted = Source::BOTH.map(|source| checkpoint.counts(source).inserted);
    let explained = target.rows + inserted.iter().sum::<u64>();
    let in_doubt: u64 = checkpoint.in_doubt().map(|segment| segment.rows).sum();
    let count = async {
        let rows = recovery.target.rows_of_share().await;
        rows.map_err(|error| Error::caused("cannot count the rows of the target", error))
    };
    let rows = context.unless_interrupted(count).await?;
    let unexplained = rows.saturating_sub(explained);
    if unexplained > in_doubt {
        context.display.note(format_args!(
            "{} has {} more rows of {} than this run can have written: something else has written \
             meanwhile, so existing rows are read again",
            context.inspected.target.name,
            HumanCount(unexplained - in_doubt),
            context.options.share()
        ));
    }
    let is_wanted = unexplained > in_doubt || (unexplained > 0 && rows <= READ_ANYWAY);
    Ok(is_wanted.then_some(rows))
}

/// Reads what an earlier process of the run wrote without recording it in the checkpoint.
///
/// # Errors
/// [`Error`] if the target cannot be read, or on a signal.
pub(super) async fn read_what_is_in_doubt(
    context: &Context,
    journal: &mut Journal,
    recovery: &Recovery,
) -> Result<(), Error> {
    if !context.resumed {
        return Ok(());
    }
    let checkpoint = journal.checkpoint();
    let in_doubt: Vec<_> = checkpoint.in_doubt().cloned().collect();
    let prefix = context.query_prefix(&checkpoint.run_id);
    recovery.after_process(in_doubt.iter(), &prefix).await?;
    let numbers = in_doubt.iter().map(|segment| segment.number);
    journal.commit(|checkpoint| checkpoint.repeated.extend(numbers))
}

/// Reads the keys of live rows written since the target was read.
async fn read_live_rows(context: &Context, recovery: Recovery) -> Result<(), Error> {
    let recovery = Recovery {
        own_rows: OwnRows::Rewrite,
        ..recovery
    };
    let rows = context.inspected.observation_rows;
    read_rows(
        context,
        &recovery,
        Against::RowsBefore,
        rows,
        "days of live rows read",
    )
    .await
}

async fn read_rows(
    context: &Context,
    recovery: &Recovery,
    against: Against,
    rows: u64,
    name: &'static str,
) -> Result<(), Error> {
    let days = recovery.target.days_to_read(rows);
    let phase = Phase::begin(&context.display, name, days.len() as u64, 0);
    for days in days {
        let extent = Extent::of_days(days);
        recovery.load_into(against, &extent).await?;
        phase.advance(1);
    }
    phase.finish();
    Ok(())
}

/// Finds the latest version of each observation.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn scan_versions(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &Arc<TraceStore>,
) -> Result<(), Error> {
    if !wants_versions(context, checkpoint) {
        return Ok(());
    }
    // A newer version may be on another shard's days.
    let compared = context.inspected.observation_partition.rows;
    let phase = Phase::begin(&context.display, "versions checked", compared, 0);
    let recovery = recovery(context, checkpoint, store);
    let mut attempts = recovery.attempts("reading observation versions");
    let on_rows = |rows| phase.advance(rows);
    let scan = version_scan(context, &on_rows);
    while let Err(error) = scan.run(store).await {
        attempts.failed(error).await?;
    }
    phase.finish();
    Ok(())
}

/// Whether observations remain whose versions must be known.
pub(super) fn wants_versions(context: &Context, checkpoint: &Checkpoint) -> bool {
    let sources = context.options.subject.sources();
    sources.contains(&Source::Observations)
        && !checkpoint.remaining(Source::Observations).is_empty()
}

/// The comparison of the share's observations with all others.
pub(super) fn version_scan<'a>(
    context: &'a Context,
    on_rows: &'a (dyn Fn(u64) + Sync),
) -> VersionScan<'a> {
    let inspected = &context.inspected;
    VersionScan {
        connection: &context.connection,
        source: Source::Observations,
        table: &inspected.observations,
        own: is_of_share(Source::Observations, inspected.share),
        rows: inspected.observation_rows,
        has_others: inspected.has_more_observations,
        filter_bytes: context.options.budget.seen_bytes,
        max_block_bytes: context.options.budget.load_block_bytes,
        pool: context.pool.clone(),
        directory: context.state.path(),
        shutdown: &context.shutdown,
        on_rows,
    }
}

/// Finds traces that already have a root.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn read_roots(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
) -> Result<(), Error> {
    if !journal.checkpoint().has_live_rows() && !context.is_repair {
        target::look_for_live_rows(context, journal).await?;
        if journal.checkpoint().has_live_rows() {
            let recovery = recovery(context, journal.checkpoint(), store);
            read_live_rows(context, recovery).await?;
        }
    }
    let checkpoint = journal.checkpoint();
    let recovery = recovery(context, checkpoint, store);
    // A root may be on another shard's days than its trace.
    let partition = context.options.partition;
    let margin = context.options.subject.trace_margin_days;
    let scan = RootScan {
        target: &recovery.target,
        observations: &context.inspected.observations,
        partition_id: &context.inspected.observation_partition.partition_id,
        live_days: checkpoint
            .has_live_rows()
            .then(|| ShareOfMonth::whole(partition).days_with_margin(margin)),
    };
    let mut attempts = recovery.attempts("reading traces that already have a root");
    while let Err(error) = scan.run(store).await {
        attempts.failed(error).await?;
    }
    Ok(())
}
