//! What the target is like before anything is written: whether it is ours alone, whether something
//! live writes to it, and what is left to that.

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

/// What could not be done where the target cannot be looked at.
const NOT_TOLD: &str = "it cannot be told which rows the target has";

/// Makes sure that no other run writes to these days of the target: its rows would not be known.
///
/// # Errors
/// [`Error`] with what to do.
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
    let doing = "waiting for the inserts of another run to end failed";
    match others.map_err(|error| Error::caused(doing, error))? {
        false => Ok(()),
        true => Err(Error::failed(format!(
            "another events-backfill, with another state directory, is writing {share} into \
             {}.{}: wait until it has ended, or stop it",
            target.database, target.name
        ))),
    }
}

/// Finds out what the target is like, if an earlier process of the run has not.
///
/// # Errors
/// [`Error`] where it cannot be found out, another run is writing, or the run is asked to end.
pub(super) async fn look(context: &Context, journal: &mut Journal) -> Result<(), Error> {
    let options = &context.options;
    if !options.dry_run {
        let target = &context.inspected.target;
        // What an earlier process of the run still writes is ended later.
        let own = context.query_prefix(&journal.checkpoint().run_id);
        let alone = alone(&context.connection, target, options.share(), Some(&own));
        context.unless_interrupted(alone).await?;
    }
    if journal.checkpoint().target.is_some() {
        return look_for_live_rows(context, journal).await;
    }
    let default = context.server_time(journal.checkpoint().started_at) - LEFT_TO_LANGFUSE;
    let mut target = state_of_target(context, default, context.state.is_restart()).await?;
    target.until = options.subject.until.or(target.until);
    if target.rows > 0 {
        context.display.note(format_args!(
            "{} has {} rows of {} already",
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

/// The same for a repair: what is left to Langfuse was not found wrong.
///
/// # Errors
/// [`Error`] where it cannot be found out, or the run is asked to end.
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

/// Finds out whether something live has begun to write to the target since the run was begun.
/// What changed in the hour before this is left to it from now on.
///
/// # Errors
/// [`Error`] where it cannot be found out, or the run is asked to end.
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
            true => ", which has written to the target already",
            false => "",
        };
        context.display.note(format_args!(
            "rows that changed after {} are left to Langfuse{why} (--until sets another time)",
            moment(until)
        ));
    }
}
