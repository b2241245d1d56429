//! Inspects the target before writing: whether another run or Langfuse writes to it, and what is
//! left to Langfuse.

use indicatif::HumanCount;

use super::context::Context;
use super::guard::leftover_inserts;
use super::journal::Journal;
use crate::clickhouse::{Connection, TableInfo};
use crate::error::Error;
use crate::inspect::LEFT_TO_LANGFUSE;
use crate::partition::{ShareOfMonth, seconds_since_1970};
use crate::progress::words::moment;
use crate::session::Session;
use crate::state::counts::TargetState;

/// What fails if the target cannot be inspected.
const NOT_TOLD: &str = "cannot tell which rows the target already has";

/// Makes sure that no other run writes to these days of the target, since its rows would be
/// unknown.
///
/// # Errors
/// [`Error`] if another run is active or the server fails.
pub(crate) async fn require_alone(
    session: &Session,
    target: &TableInfo,
    share: ShareOfMonth,
) -> Result<(), Error> {
    let alone = alone(&session.connection, target, share, None);
    session.unless_interrupted(alone).await
}

async fn alone(
    connection: &Connection,
    target: &TableInfo,
    share: ShareOfMonth,
    own: Option<&str>,
) -> Result<(), Error> {
    let others = leftover_inserts::others_are_at_work(connection, target, share, own).await;
    let doing = "waiting for another run's inserts to end failed";
    match others.map_err(|error| Error::caused(doing, error))? {
        false => Ok(()),
        true => Err(Error::failed(format!(
            "another events-backfill with another state directory is writing {share} into {}.{}: \
             stop it, or wait until it ends",
            target.database, target.name
        ))),
    }
}

/// Makes sure that no other run writes to these days, as far as its inserts are seen now.
///
/// # Errors
/// [`Error`] if another run is writing, the server fails, or on a signal.
pub(super) async fn require_no_other(context: &Context, journal: &Journal) -> Result<(), Error> {
    let options = &context.options;
    if options.dry_run {
        return Ok(());
    }
    let target = &context.inspected.target;
    // Inserts of an earlier process of this run are ended later.
    let own = context.query_prefix(&journal.checkpoint().run_id);
    let alone = alone(&context.connection, target, options.share(), Some(&own));
    context.unless_interrupted(alone).await
}

/// Inspects the target, unless an earlier process of the run has.
///
/// # Errors
/// [`Error`] if the server fails, another run is writing, or on a signal.
pub(super) async fn look(context: &Context, journal: &mut Journal) -> Result<(), Error> {
    let options = &context.options;
    require_no_other(context, journal).await?;
    if journal.checkpoint().target.is_some() {
        return look_for_live_rows(context, journal).await;
    }
    let default = context.server_time(journal.checkpoint().started_at) - LEFT_TO_LANGFUSE;
    let mut target = state_of_target(context, default, context.state.is_restart()).await?;
    target.until = options.subject.until.or(target.until);
    if target.rows > 0 {
        context.display.note(format_args!(
            "{} already has {} rows of {}",
            context.inspected.target.name,
            HumanCount(target.rows),
            options.share()
        ));
    }
    tell_until(context, &target);
    journal.commit(|checkpoint| checkpoint.target = Some(target))?;
    context.state.forget_restart();
    Ok(())
}

/// Inspects the target for a repair, leaving nothing to Langfuse: verify has already excluded that.
///
/// # Errors
/// [`Error`] if the server fails, or on a signal.
pub(super) async fn look_for_repair(context: &Context, journal: &mut Journal) -> Result<(), Error> {
    if journal.checkpoint().target.is_some() {
        return Ok(());
    }
    let mut target = state_of_target(context, 0, true).await?;
    target.until = None;
    journal.commit(|checkpoint| checkpoint.target = Some(target))
}

async fn state_of_target(
    context: &Context,
    until: i64,
    is_restart: bool,
) -> Result<TargetState, Error> {
    let target_month = context.target_month();
    let look = async {
        let looked = target_month.look(until, is_restart).await;
        looked.map_err(|error| Error::caused(NOT_TOLD, error))
    };
    context.unless_interrupted(look).await
}

/// Checks whether Langfuse has started writing to the target since the run began. If so, changes
/// from the last hour on are left to it.
///
/// # Errors
/// [`Error`] if the server fails, or on a signal.
pub(super) async fn look_for_live_rows(
    context: &Context,
    journal: &mut Journal,
) -> Result<(), Error> {
    let Some(target) = journal.checkpoint().target.clone() else {
        return Ok(());
    };
    if target.has_live_rows {
        return Ok(());
    }
    let target_month = context.target_month();
    let look = async {
        let has_live_rows = target_month.has_live_rows().await;
        has_live_rows.map_err(|error| Error::caused(NOT_TOLD, error))
    };
    if !context.unless_interrupted(look).await? {
        return Ok(());
    }
    let default = context.server_time(seconds_since_1970()) - LEFT_TO_LANGFUSE;
    let target = TargetState {
        has_live_rows: true,
        until: context
            .options
            .subject
            .until
            .or(target.until)
            .or(Some(default)),
        ..target
    };
    tell_until(context, &target);
    journal.commit(|checkpoint| checkpoint.target = Some(target))
}

fn tell_until(context: &Context, target: &TargetState) {
    if let Some(until) = target.until {
        let why = match target.has_live_rows {
            true => ", which already writes to the target",
            false => "",
        };
        context.display.note(format_args!(
            "rows changed after {} are left to Langfuse{why} (use --until to set another time)",
            moment(until)
        ));
    }
}
