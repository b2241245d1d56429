//! After writing: completes the tables that the target's views fill, and counts duplicates.

use std::collections::BTreeSet;
use std::iter;
use std::sync::Arc;

use super::context::Context;
use super::error::WorkError;
use super::guard::core_view::{CoreView, Whose};
use super::guard::target::{Extent, TargetMonth};
use super::known_rows::recovery;
use crate::error::Error;
use crate::mapping::Source;
use crate::state::checkpoint::Checkpoint;
use crate::state::counts::OwnRows;
use crate::trace_store::TraceStore;

/// Completes the tables that the target's views fill, where they may lack rows.
///
/// # Errors
/// [`Error`] if the server fails, or on a signal.
pub(super) async fn level(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &Arc<TraceStore>,
) -> Result<(), Error> {
    let Some(target) = &checkpoint.target else {
        return Ok(());
    };
    let target_month = context.target_month();
    let days = |rows| {
        let days = target_month.days_to_read(rows).into_iter();
        days.map(Extent::of_days).collect()
    };
    let extents: BTreeSet<Extent> = match target.rows {
        0 => repeated_extents(context, checkpoint),
        rows => days(rows),
    };
    // More extents than days would read days repeatedly.
    let extents = match extents.len() > context.days().len() {
        true => days(context.inspected.observation_rows),
        false => extents,
    };
    level_extents(context, checkpoint, store, &extents).await
}

/// Completes the tables that the target's views fill, in some extents.
///
/// # Errors
/// [`Error`] if the server fails, or on a signal.
pub(super) async fn level_extents(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &Arc<TraceStore>,
    extents: &BTreeSet<Extent>,
) -> Result<(), Error> {
    if extents.is_empty() || context.options.dry_run {
        return Ok(());
    }
    let recovery = recovery(context, checkpoint, store);
    let prefix = format!("{}level", context.query_prefix(&checkpoint.run_id));
    let mut attempts = recovery.attempts("completing the view's table");
    loop {
        let level =
            async { Ok(level_once(context, checkpoint, &recovery.target, extents, &prefix).await) };
        let Err(error) = context.unless_interrupted(level).await? else {
            return Ok(());
        };
        attempts.failed(error).await?;
        recovery.end_inserts(&prefix).await?;
    }
}

async fn level_once(
    context: &Context,
    checkpoint: &Checkpoint,
    target: &TargetMonth,
    extents: &BTreeSet<Extent>,
    prefix: &str,
) -> Result<(), WorkError> {
    let (connection, target_table) = (&context.connection, &context.inspected.target);
    let views = CoreView::all(connection, target_table).await?;
    // Rows written through another replica would be copied again.
    for table in iter::once(target_table).chain(views.iter().map(|view| &view.table)) {
        connection.catch_up(table).await?;
    }
    let state = checkpoint.target.as_ref();
    let rewritten_since = state.and_then(|state| match state.own_rows {
        OwnRows::KeepAfterBlock(block) => Some((block, &state.view_blocks)),
        _ => None,
    });
    let whose = match context.is_repair {
        true => Whose::Everybodys,
        false => Whose::Backfills,
    };
    for view in &views {
        for extent in extents {
            if !view.is_level(target, extent).await? {
                view.level(target, extent, whose, prefix).await?;
            }
        }
        let Some((block, view_blocks)) = rewritten_since else {
            continue;
        };
        let of_table = view_blocks.get(&view.table.qualified_name()).copied();
        // Rewritten rows have the same keys as before, so after a failed insert their keys do not
        // show whether the view copied them.
        for extent in repeated_extents(context, checkpoint) {
            view.copy_again(target, &extent, (block, of_table), prefix)
                .await?;
        }
    }
    Ok(())
}

/// Extents of segments with a failed attempt that may have written something.
fn repeated_extents(context: &Context, checkpoint: &Checkpoint) -> BTreeSet<Extent> {
    let days = context.days();
    let repeated = checkpoint.repeated_segments();
    repeated
        .map(|segment| Extent::of_segment(segment, &days).of_whole_days())
        .collect()
}

/// Counts unmerged duplicates, if everything was written again.
///
/// # Errors
/// [`Error`] if the server fails, or on a signal.
pub(super) async fn count_rows_to_merge(
    context: &Context,
    checkpoint: &Checkpoint,
) -> Result<Option<u64>, Error> {
    let rewrites = |own_rows| own_rows != OwnRows::Keep;
    let target = checkpoint.target.as_ref();
    let has_rewritten = target.is_some_and(|target| rewrites(target.own_rows));
    let counts = Source::BOTH.map(|source| checkpoint.counts(source).left_out);
    let has_replaced = counts.iter().any(|counts| counts.beside_older > 0);
    if !(has_rewritten || has_replaced) || context.options.dry_run {
        return Ok(None);
    }
    let target_month = context.target_month();
    let count = async {
        let rows = target_month.rows_to_merge().await;
        rows.map(Some)
            .map_err(|error| Error::caused("cannot count the unmerged duplicates", error))
    };
    context.unless_interrupted(count).await
}
