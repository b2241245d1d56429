//! Repairs a month: finds what is wrong as verify does, rewrites only that, and on request lets
//! ClickHouse merge duplicates.
//!
//! ```text
//!  verify::examine ──▶ keeper ──▶ rows on disk ──▶ segments ──▶ backfill::mend (read, enrich,
//! insert)
//!                                                                   │
//!                                       what events_core lacks ◀────┘──▶ optimize
//! ```

mod optimize;
mod pieces;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use self::optimize::Optimizer;
use self::pieces::Keeper;
use self::report::Found;
pub(crate) use self::report::Report;
use crate::backfill::{self, Context};
use crate::cli::options::{Earlier, Options};
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::memory::peak_resident_bytes;
use crate::partition::{Partition, milliseconds_since_1970, seconds_since_1970};
use crate::progress::moment::Moment;
use crate::progress::words::plural;
use crate::session::Session;
use crate::state::checkpoint::{Checkpoint, RunIdentity, new_run_id};
use crate::state::directory::StateDir;
use crate::state::finding::Finding;
use crate::state::resume;
use crate::trace_store::TraceStore;
use crate::verify;

/// The rows found and still to write: all that another process needs to continue.
struct RepairWork {
    found: Found,
    store: Arc<TraceStore>,
    checkpoint: Checkpoint,
    resumed: bool,
}

/// Repairs one partition and reports the result, even if it stopped early. `optimize` also merges
/// duplicates. The start and the result are recorded with the run's state.
///
/// # Errors
/// [`Error`] if the repair never started.
pub(crate) async fn run(
    session: &Session,
    mut options: Options,
    optimize: bool,
) -> Result<(Report, Result<(), Error>), Error> {
    let started = Instant::now();
    if !options.subject.observations {
        return Err(Error::configuration(
            "--only applies to a run and to plan; repair always covers observations too",
        ));
    }
    let retries = session.retries(&options);
    let inspected = session.inspect(&mut options, &retries).await?;
    resume::require_finished(&options)?;
    if let Some(hidden) = inspected.hidden.as_ref().filter(|_| !options.dry_run) {
        return Err(Error::configuration(format!(
            "{hidden}: the repair would treat events of hidden rows as wrong; set CLICKHOUSE_USER \
             to a user that sees all rows"
        )));
    }
    if optimize && !options.dry_run {
        require_merges(session, &inspected, &options).await?;
    }
    let state = StateDir::prepare_repair(&options.state_dir, options.partition, options.dry_run)?;
    if !options.dry_run {
        backfill::require_alone(session, &inspected.target, options.share()).await?;
    }
    let mut report = Report::begin(&options, &inspected);
    let dry_run = options.dry_run;
    let asked_for = options.clone();
    let mut mended = None;
    let findings = find(session, &options, &inspected, &retries, &state, &mut report).await;
    let outcome = match findings {
        Err(error) => Err(error),
        Ok(_) if dry_run => {
            state.remove();
            Ok(())
        }
        Ok(findings) => {
            // From here on the previous findings are void.
            let identity = findings.checkpoint.identity.clone();
            begun(options.partition, optimize).keep(&asked_for, &identity, &session.display)?;
            mended = Some(identity);
            let wanted = optimize.then(|| Optimizer {
                connection: session.connection.clone(),
                display: session.display.clone(),
                shutdown: session.shutdown.clone(),
                target: inspected.target.clone(),
                partition: options.partition,
                month: backfill::target_month(
                    session.connection.clone(),
                    &session.shutdown,
                    &inspected,
                    &options,
                ),
            });
            let retries = retries.clone();
            let context = Context::new(session, options, inspected, retries, state, started)
                .of_repair(findings.resumed);
            mend(session, &context, findings, wanted, &mut report).await
        }
    };
    report.retries = retries.repeated();
    report.seconds = started.elapsed().as_secs_f64();
    report.peak_rss_bytes = peak_resident_bytes();
    report.complete = outcome.is_ok();
    let outcome = outcome.and_then(|()| match report.what_is_left() {
        Some(sentence) if !dry_run => Err(Error::failed(sentence)),
        _ => Ok(()),
    });
    if let Some(identity) = mended {
        let finding = Finding::new("repair", milliseconds_since_1970(), &report, &outcome);
        if let Err(error) = finding.keep(&asked_for, &identity, &session.display) {
            // The repair itself is done, so this is only a note.
            session.display.note(error);
        }
    }
    Ok((report, outcome))
}

/// The record of a repair in progress.
fn begun(partition: Partition, optimize: bool) -> Finding {
    let now = milliseconds_since_1970();
    let how = if optimize { " --optimize" } else { "" };
    Finding {
        command: "repair".to_owned(),
        said_at: now,
        error: Some(format!(
            "started at {} UTC and not finished: if no process is running it, continue with \
             `events-backfill repair --partition {partition}{how} --resume`",
            Moment(now / 1_000).to_minute()
        )),
        ..Finding::default()
    }
}

/// Finds what is wrong, or reuses what an earlier process found.
async fn find(
    session: &Session,
    options: &Options,
    inspected: &Inspected,
    retries: &Retries,
    state: &StateDir,
    report: &mut Report,
) -> Result<RepairWork, Error> {
    let identity = RunIdentity::new(options, inspected);
    if options.earlier == Earlier::Resume
        && let Some(findings) = take_up(options, &identity, state)?
    {
        session.display.note(format_args!(
            "resuming with {}",
            resume::progress(&findings.checkpoint)
        ));
        report.resumed = true;
        report.take(&findings.checkpoint, findings.found.wanted);
        return Ok(findings);
    }
    state.clear()?;
    let (run_id, now) = (new_run_id(), seconds_since_1970());
    let cache_bytes = options.budget.cache_bytes;
    let store = TraceStore::create(&state.trace_store(), cache_bytes, &run_id);
    let store = Arc::new(store?);
    let mut keeper = Keeper::new(Arc::clone(&store));
    let (verified, outcome) =
        verify::examine(session, options, inspected, retries, &mut keeper).await;
    let mut found = Found::of(&verified);
    report.found = found;
    if verified.core_table.is_some() {
        report.core_table.clone_from(&verified.core_table);
    }
    outcome?;
    let divided = tokio::task::block_in_place(|| keeper.finish())?;
    let (wanted, segments) = divided;
    found.wanted = wanted;
    report.found = found;
    let mut checkpoint = Checkpoint::begin(identity, run_id, now);
    session.display.note(to_do(
        (segments.iter().map(|segment| segment.rows).sum::<u64>() + wanted.rows_of_whole_days)
            .saturating_sub(wanted.of_either),
        segments.len() as u64,
        (wanted.only_missing_in_core, report.core_name()),
        options.dry_run,
    ));
    checkpoint.segments = Some(segments);
    report.take(&checkpoint, wanted);
    if !options.dry_run {
        // Store the findings before the checkpoint that refers to them.
        crate::state::report::keep(&found, &found_file(state))?;
        store.sync()?;
        checkpoint.keep(&state.checkpoint())?;
    }
    Ok(RepairWork {
        found,
        store,
        checkpoint,
        resumed: false,
    })
}

/// What there is to write: rows in segments, and rows that only a view's table lacks.
fn to_do(rows: u64, segments: u64, (in_core, core): (u64, &str), dry_run: bool) -> String {
    let rows = (rows > 0).then(|| {
        format!(
            "{} to write in {}",
            plural(rows, "row"),
            plural(segments, "segment")
        )
    });
    let in_core =
        (in_core > 0).then(|| format!("{} missing only in {core}", plural(in_core, "row")));
    let to_do: Vec<String> = rows.into_iter().chain(in_core).collect();
    let to_do = match to_do.is_empty() {
        true => "nothing to write".to_owned(),
        false => to_do.join(", and "),
    };
    match dry_run {
        true => format!("dry run, which writes nothing: {to_do}"),
        false => to_do,
    }
}

/// The unrepaired findings of an earlier process, if any.
fn take_up(
    options: &Options,
    identity: &RunIdentity,
    state: &StateDir,
) -> Result<Option<RepairWork>, Error> {
    let unusable = |what: String| {
        Error::configuration(format!(
            "cannot continue the repair in {}: {what}; omit --resume to start over",
            state.path().display()
        ))
    };
    let stored = Checkpoint::read(&state.checkpoint());
    let stored = stored.map_err(|error| unusable(error.to_string()))?;
    let Some(checkpoint) = stored.filter(|checkpoint| !checkpoint.finished) else {
        return Ok(None);
    };
    if let Some(difference) = checkpoint.identity.difference(identity) {
        return Err(unusable(difference));
    }
    let found = std::fs::read(found_file(state)).map_err(|error| unusable(error.to_string()))?;
    let found = serde_json::from_slice(&found).map_err(|error| unusable(error.to_string()))?;
    let days: Vec<_> = checkpoint.days.keys().copied().collect();
    let store = TraceStore::reopen(
        &state.trace_store(),
        options.budget.cache_bytes,
        &checkpoint.run_id,
        &days,
    );
    Ok(Some(RepairWork {
        found,
        store: Arc::new(store.map_err(|error| unusable(error.to_string()))?),
        checkpoint,
        resumed: true,
    }))
}

async fn mend(
    session: &Session,
    context: &Context,
    findings: RepairWork,
    optimizer: Option<Optimizer>,
    report: &mut Report,
) -> Result<(), Error> {
    report.found = findings.found;
    let RepairWork {
        checkpoint, store, ..
    } = findings;
    let (mended, outcome) = backfill::mend(context, checkpoint, &store).await;
    report.add(&mended);
    outcome?;
    drop(store);
    // Nothing is left to continue.
    context.remove_state();
    if let Some(optimizer) = optimizer {
        let merged = optimizer.run(&mut report.optimized).await;
        let counted = session.unless_interrupted(optimizer.rows_left()).await;
        merged?;
        report.rows_to_merge = Some(counted?);
    }
    Ok(())
}

/// Fails unless the user may run OPTIMIZE on the tables.
async fn require_merges(
    session: &Session,
    inspected: &Inspected,
    options: &Options,
) -> Result<(), Error> {
    let user = &options.connection.user;
    for table in &inspected.written {
        let granted = session.connection.may("OPTIMIZE", table).await;
        let granted = granted.map_err(|error| Error::configuration(error.to_string()))?;
        if !granted {
            let name = format!("{}.{}", table.database, table.name);
            return Err(Error::configuration(format!(
                "user '{user}' may not merge {name}: GRANT OPTIMIZE ON {name} TO {user}, or omit \
                 --optimize"
            )));
        }
    }
    Ok(())
}

fn found_file(state: &StateDir) -> PathBuf {
    state.path().join("found.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_to_do_leaves_out_what_there_is_not() {
        let core = "events_core";
        assert_eq!(
            to_do(4, 1, (0, core), false),
            "4 rows to write in 1 segment"
        );
        assert_eq!(
            to_do(0, 0, (1, core), false),
            "1 row missing only in events_core"
        );
        assert_eq!(
            to_do(1_000, 2, (3, core), true),
            "dry run, which writes nothing: 1,000 rows to write in 2 segments, and 3 rows missing \
             only in events_core"
        );
        assert_eq!(to_do(0, 0, (0, core), false), "nothing to write");
    }
}
